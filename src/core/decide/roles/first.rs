//! The first grant of a service, and of each life of the cluster (PROTOCOL.md G).

use super::{Look, Verdict};
use crate::command::Command;
use crate::id::InstanceName;
use crate::role::DataIdentity;

impl Look<'_> {
    /// Who is to be the first primary: who is out of recovery; else who is furthest, and of those
    /// the highest priority.
    pub(super) fn first(&mut self) -> Verdict {
        if self.role.paused.is_some() {
            return Verdict::Wait("no first primary yet: the service is paused".to_owned());
        }
        let mut missing = Vec::new();
        let mut reported = Vec::new();
        for declared in &self.spec.instances {
            let row = self.role.instances.get(&declared.name);
            let is_here = row.is_some_and(|row| {
                row.quarantined.is_none() && self.view.state.sessions().contains_key(&row.session)
            });
            match row.filter(|_| is_here) {
                Some(row) => reported.push((declared, row.data)),
                None => missing.push(declared.name.as_str()),
            }
        }
        if !missing.is_empty() {
            let text = format!("no first primary yet: not reported: {}", missing.join(", "));
            return Verdict::Wait(text);
        }
        let electable = reported
            .iter()
            .filter(|(declared, data)| declared.electable() && data.is_some())
            .max_by_key(|(declared, data)| {
                let data = data.as_ref();
                let at = data.map(|data| (data.out_of_recovery, data.epoch, data.position));
                (at, declared.priority, std::cmp::Reverse(&declared.name))
            });
        let Some((declared, data)) = electable else {
            return Verdict::Wait("no first primary yet: no instance has a database".to_owned());
        };
        let copies = reported.iter().filter_map(|(declared, data)| Some((declared, (*data)?)));
        let mut unknown = copies.filter(|(_, data)| data.position.is_none());
        let compares = reported.iter().filter(|(_, data)| data.is_some()).count() > 1
            && data.is_some_and(|data| !data.out_of_recovery);
        if let Some((which, _)) = unknown.next().filter(|_| compares) {
            let why = format!("where the WAL of {} ends is not known", which.name);
            return Verdict::Wait(format!("no first primary yet: {why}"));
        }
        let text = format!("first primary: {}", describe(&declared.name, data.as_ref()));
        let candidate = declared.name.clone();
        Verdict::Do(Command::GrantFirst { service: self.name.clone(), candidate }, text)
    }
}

fn describe(name: &InstanceName, data: Option<&DataIdentity>) -> String {
    match data {
        Some(data) if data.out_of_recovery => format!("{name}, which is one already"),
        Some(DataIdentity { position: Some(position), .. }) => {
            format!("{name}, which has got to {position}")
        }
        _ => name.to_string(),
    }
}
