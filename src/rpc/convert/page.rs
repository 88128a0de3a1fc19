//! Lists in pages, at the asking end.

use tonic::{Response, Status};

use crate::pb::v1::{ListElectionsResponse, ListServicesResponse};

/// A page of a list.
pub trait Page {
    /// Whether it says that there are more, and the last name on it.
    fn end(&self) -> (bool, Option<&str>);
}

impl Page for ListElectionsResponse {
    fn end(&self) -> (bool, Option<&str>) {
        (self.more, self.elections.last().map(|row| row.name.as_str()))
    }
}

impl Page for ListServicesResponse {
    fn end(&self) -> (bool, Option<&str>) {
        let spec = self.services.last().and_then(|row| row.spec.as_ref());
        (self.more, spec.map(|spec| spec.name.as_str()))
    }
}

/// The page that begins above `after`, if it gets on: whoever asks for page after page would never
/// end with a node that says there are more and names no more.
///
/// # Errors
/// INTERNAL when it does not.
pub fn gets_on<P: Page>(after: &str, page: Response<P>) -> Result<Response<P>, Status> {
    match page.get_ref().end() {
        (true, last) if last.is_none_or(|last| last <= after) => Err(Status::internal(format!(
            "the node says there are more than {after:?}, but no names"
        ))),
        _ => Ok(page),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::v1::Election;

    #[test]
    fn a_page_that_does_not_get_on_is_refused() {
        let page = |names: &[&str], more| {
            let row = |name: &&str| Election { name: (*name).into(), ..Election::default() };
            let elections = names.iter().map(row).collect();
            Response::new(ListElectionsResponse { elections, more, ..Default::default() })
        };
        assert!(gets_on("", page(&["a", "b"], true)).is_ok());
        assert!(gets_on("b", page(&["c"], true)).is_ok());
        assert!(gets_on("b", page(&[], false)).is_ok());
        for stuck in [page(&[], true), page(&["b"], true), page(&["a"], true)] {
            assert!(gets_on("b", stuck).is_err());
        }
        let nameless = ListServicesResponse { more: true, ..Default::default() };
        assert!(gets_on("", Response::new(nameless)).is_err());
    }
}
