//! What a stream was told of the services that it follows, and the resources made of that.

use std::collections::BTreeMap;
use std::sync::Arc;

use regent_core::id::ServiceName;
use regent_core::route::table::{Closed, Routes, Write};

use crate::client::Client;
use crate::names::{Kind, Name, Side};
use crate::resources::{Resource, Unroutable, endpoints, lasting};

/// What can be said of a resource.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Nothing yet.
    Waiting,
    /// There is none.
    Absent,
    /// It is this one.
    Is(Arc<Resource>),
    /// It was this one, and this node cannot say whether it still is: right for whom it was said
    /// to, nothing to begin with.
    Was(Arc<Resource>),
}

/// What a word about a service changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changed {
    /// Whether it came or went, or is known for the first time.
    pub existence: bool,
    /// Whether it is not there.
    pub gone: bool,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    services: BTreeMap<ServiceName, Known>,
    /// Changes of who is left out that nobody was told of.
    left_out: Vec<(Name, Vec<Unroutable>)>,
}

#[derive(Debug)]
enum Known {
    Waiting,
    Absent,
    Here(Here),
}

#[derive(Debug)]
struct Here {
    routes: Arc<Routes>,
    /// The write route is that of before: this node cannot prove it any more.
    held: bool,
    /// Made when first asked for.
    made: BTreeMap<(Kind, Side), Option<Arc<Resource>>>,
    left_out: BTreeMap<Side, Vec<Unroutable>>,
}

impl Table {
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    pub fn follows(&self, service: &ServiceName) -> bool {
        self.services.contains_key(service)
    }

    pub fn await_word_of(&mut self, service: &ServiceName) {
        self.services.insert(service.clone(), Known::Waiting);
    }

    pub fn forget(&mut self, service: &ServiceName) {
        self.services.remove(service);
    }

    /// Who is left out of what was made since the last call, where that changed.
    pub fn take_left_out(&mut self) -> Vec<(Name, Vec<Unroutable>)> {
        std::mem::take(&mut self.left_out)
    }

    /// Takes in news; `None`: the service is not followed.
    pub fn put(&mut self, service: &ServiceName, routes: Option<Arc<Routes>>) -> Option<Changed> {
        let known = self.services.get_mut(service)?;
        let gone = routes.is_none();
        let existence = match (&mut *known, routes) {
            (Known::Absent, None) => false,
            (Known::Here(here), Some(routes)) => {
                here.put(routes);
                false
            }
            (_, None) => {
                *known = Known::Absent;
                true
            }
            (_, Some(routes)) => {
                let (made, left_out) = (BTreeMap::new(), BTreeMap::new());
                *known = Known::Here(Here { routes, held: false, made, left_out });
                true
            }
        };
        Some(Changed { existence, gone })
    }

    /// What `name` is now.
    pub fn content(&mut self, kind: Kind, name: &str, client: &Client) -> Content {
        let Some(name) = Name::parse(name) else { return Content::Absent };
        match self.services.get_mut(&name.service) {
            None | Some(Known::Waiting) => Content::Waiting,
            Some(Known::Absent) => Content::Absent,
            Some(Known::Here(here)) => {
                let made = here.make(kind, &name, client, &mut self.left_out);
                match (made, kind, name.side) {
                    (None, Kind::Endpoints, _) => Content::Waiting,
                    (None, _, _) => Content::Absent,
                    (Some(made), Kind::Endpoints, Side::Write) if here.held => Content::Was(made),
                    (Some(made), _, _) => Content::Is(made),
                }
            }
        }
    }
}

impl Here {
    fn put(&mut self, routes: Arc<Routes>) {
        let held = self.hold(&routes);
        (self.held, self.routes) = match held {
            Some(held) => (true, Arc::new(held)),
            None => (false, routes),
        };
        self.made.retain(|(kind, _), _| *kind != Kind::Endpoints);
    }

    /// The routes to go on with where `now` does not know who takes writes, and by its policy the
    /// primary serves on: the write route of before. But not that of an older epoch: that one is
    /// over for certain, whoever follows.
    fn hold(&self, now: &Routes) -> Option<Routes> {
        if !matches!(now.write, Write::Nobody(Closed::Unproven { holds: true })) {
            return None;
        }
        let write = match &self.routes.write {
            Write::Nobody(Closed::Unproven { holds: true }) => return None,
            before if self.routes.epoch == now.epoch => before.clone(),
            _ => Write::Nobody(Closed::Unproven { holds: false }),
        };
        Some(Routes { write, ..now.clone() })
    }

    fn make(
        &mut self,
        kind: Kind,
        name: &Name,
        client: &Client,
        changed: &mut Vec<(Name, Vec<Unroutable>)>,
    ) -> Option<Arc<Resource>> {
        if let Some(made) = self.made.get(&(kind, name.side)) {
            return made.clone();
        }
        let made = if kind == Kind::Endpoints {
            let assigned = endpoints(&self.routes, name.side, client);
            let before = self.left_out.entry(name.side).or_default();
            if *before != assigned.unroutable {
                before.clone_from(&assigned.unroutable);
                changed.push((name.clone(), assigned.unroutable));
            }
            assigned.resource
        } else {
            lasting(kind, name, client)
        };
        let made = made.map(Arc::new);
        self.made.insert((kind, name.side), made.clone());
        made
    }
}
