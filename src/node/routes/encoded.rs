//! Tables as they are told to clients of one place: encoded once for all who follow from there.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use regent_core::id::{Locality, ServiceName};
use regent_core::route::table::Routes;
use regent_rpc::convert::routing::routes_out;
use regent_rpc::pb::v1;

/// Fewer are not looked through for those that nobody needs any more.
const FEW: usize = 64;

/// Who is told the same: followers of one service from one place.
pub struct Audience {
    service: ServiceName,
    client: Locality,
    last: Mutex<Option<Last>>,
}

/// What they were told last.
struct Last {
    routes: Weak<Routes>,
    bytes: Bytes,
}

/// The audiences that somebody belongs to.
#[derive(Default)]
pub struct Audiences(Mutex<HashMap<(ServiceName, Locality), Weak<Audience>>>);

impl Audiences {
    /// Those who follow `service` from `client`. Its host is nobody's concern: near is the same zone.
    pub fn of(&self, service: ServiceName, client: Locality) -> Arc<Audience> {
        let client = Locality { host: String::new(), ..client };
        let mut all = self.0.lock();
        let key = (service, client);
        if let Some(known) = all.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        if all.len() >= FEW && all.len() == all.capacity() {
            all.retain(|_, audience| audience.strong_count() > 0);
        }
        let (service, client) = key.clone();
        let new = Arc::new(Audience { service, client, last: Mutex::new(None) });
        all.insert(key, Arc::downgrade(&new));
        new
    }
}

impl Audience {
    /// What they follow.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// `routes` as a `WatchRoutesResponse` without its stamp; encoded messages may be concatenated, so
    /// that each stream puts its own stamp in front.
    pub fn encoded(&self, routes: &Arc<Routes>) -> Bytes {
        let mut last = self.last.lock();
        let same = |last: &&Last| std::ptr::eq(last.routes.as_ptr(), Arc::as_ptr(routes));
        if let Some(last) = last.as_ref().filter(same) {
            return last.bytes.clone();
        }
        // Nobody else is let in meanwhile: they are about to ask for the same.
        let table = routes_out(routes, &self.client);
        let message = v1::WatchRoutesResponse { stamp: None, routes: Some(table) };
        let bytes = Bytes::from(message.encode_to_vec());
        *last = Some(Last { routes: Arc::downgrade(routes), bytes: bytes.clone() });
        bytes
    }
}

#[cfg(test)]
mod tests {
    use regent_core::id::{Epoch, Incarnation, Revision};
    use regent_core::route::table::{Closed, Write};

    use super::*;

    fn table() -> Arc<Routes> {
        let (service, at) = ("s".parse().expect("a name"), (Incarnation::default(), Revision(1)));
        let write = Write::Nobody(Closed::Lapsed);
        Arc::new(Routes {
            service,
            epoch: Epoch::NONE,
            at,
            write,
            former: None,
            reads: Vec::new(),
            reads_unknown: false,
            all: Vec::new(),
        })
    }

    fn from(all: &Audiences, zone: &str, host: &str) -> Arc<Audience> {
        let (region, zone, host) = (String::new(), zone.to_owned(), host.to_owned());
        all.of("s".parse().expect("a name"), Locality { region, zone, host })
    }

    #[test]
    fn followers_from_one_place_share_what_is_encoded_until_the_table_is_another() {
        let (all, old, new) = (Audiences::default(), table(), table());
        let (one, same, other) =
            (from(&all, "a", "h1"), from(&all, "a", "h2"), from(&all, "b", ""));
        let bytes = one.encoded(&old);
        assert_eq!(same.encoded(&old).as_ptr(), bytes.as_ptr(), "the very same bytes");
        assert_ne!(other.encoded(&old).as_ptr(), bytes.as_ptr());
        let newer = same.encoded(&new).as_ptr();
        assert_ne!(newer, bytes.as_ptr(), "another table is encoded anew, whatever it says");
        assert_eq!(one.encoded(&new).as_ptr(), newer);
        let message = v1::WatchRoutesResponse::decode(bytes).expect("a message");
        assert_eq!(message.routes, Some(routes_out(&old, &Locality::default())));
    }

    /// Anybody may name any place.
    #[test]
    fn audiences_that_nobody_belongs_to_any_more_make_room() {
        let all = Audiences::default();
        let stays = from(&all, "stays", "");
        for at in 0..10_000 {
            from(&all, &at.to_string(), "");
        }
        assert!(all.0.lock().len() < 4 * FEW);
        assert!(Arc::ptr_eq(&stays, &from(&all, "stays", "")));
    }
}
