//! Watching without gaps: a stream that breaks is opened again at another node where it ended; one
//! that cannot go on (compacted, or a new incarnation) says so and begins with a snapshot.

use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;

use regent_rpc::pb::v1;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use crate::connect::Cluster;
use crate::error::{CliError, Kind, Outcome};

/// Pause before a broken stream is opened again: short, since another node can go on at once, and
/// not zero, since a stream that ends immediately must not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// What a stream's message means for the place where it could be taken up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A row, at this revision.
    Change(u64),
    /// The snapshot is complete.
    SnapshotEnd(v1::Stamp),
    /// Nothing changed up to here.
    Bookmark(v1::Stamp),
    /// Nothing is known.
    None,
}

/// What the verb is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Step<T> {
    /// A snapshot begins: what was shown before may be out of date.
    Begin {
        /// Why the changes could not simply go on; empty at the first time.
        why: String,
    },
    /// A message, and whether it belongs to the snapshot.
    Message(T, bool),
}

/// Where a stream stands.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    from: v1::WatchFrom,
    live: bool,
}

impl Place {
    fn stamp(&mut self, stamp: v1::Stamp) {
        self.live = true;
        self.from = v1::WatchFrom {
            revision: stamp.revision,
            incarnation: stamp.incarnation,
            incarnation_id: stamp.incarnation_id,
        };
    }

    fn note(&mut self, mark: Mark) {
        match mark {
            // Inside the snapshot rows come in the order of names: nothing could be taken up there.
            Mark::Change(revision) if self.live => self.from.revision = revision,
            Mark::SnapshotEnd(stamp) | Mark::Bookmark(stamp) => self.stamp(stamp),
            Mark::Change(_) | Mark::None => {}
        }
    }
}

/// Follows a watch until `each` breaks off. Never returns by itself unless the cluster refuses.
///
/// # Errors
/// A refusal, or nobody answered within the timeout.
pub async fn follow<T, F, Answer>(
    cluster: &Cluster,
    what: &str,
    open: F,
    mark: impl Fn(&T) -> Mark,
    mut each: impl FnMut(Step<T>) -> Outcome<ControlFlow<()>>,
) -> Outcome
where
    F: Fn(Channel, v1::WatchFrom) -> Answer,
    Answer: Future<Output = Result<Response<Streaming<T>>, Status>>,
{
    let mut place = Place::default();
    let mut why = String::new();
    loop {
        if !place.live && each(Step::Begin { why: why.clone() })?.is_break() {
            return Ok(());
        }
        let from = place.from;
        let mut stream = match cluster.ask(what, |channel| open(channel, from)).await {
            Ok(stream) => stream,
            Err(error) if is_compacted(&error) && place.live => {
                why = error.causes.join("; ");
                place = Place::default();
                continue;
            }
            Err(error) => return Err(error),
        };
        why = loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    let snapshot = !place.live;
                    place.note(mark(&message));
                    if each(Step::Message(message, snapshot))?.is_break() {
                        return Ok(());
                    }
                }
                Ok(None) => break "the node ended the watch".to_owned(),
                Err(status) if status.code() == Code::OutOfRange => {
                    place = Place::default();
                    break status.message().to_owned();
                }
                Err(status) if is_final(&status) => {
                    return Err(crate::connect::from_status(what, "the node", &status));
                }
                Err(status) => break status.message().to_owned(),
            }
        };
        if !place.live {
            place = Place::default();
        }
        tracing::debug!(what, why, "the watch broke; it is opened again");
        cluster.prefer_next();
        tokio::time::sleep(PAUSE).await;
    }
}

fn is_compacted(error: &CliError) -> bool {
    error.kind == Kind::Refused && error.code == Some(Code::OutOfRange)
}

/// Whether opening the stream again would be of no use.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::Unimplemented
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_taken_up_after_the_last_change_seen_but_never_inside_a_snapshot() {
        let mut place = Place::default();
        place.note(Mark::Change(7));
        assert_eq!(place.from.revision, 0, "a row of the snapshot is no place to go on from");
        let stamp = v1::Stamp { incarnation: 2, revision: 9, ..Default::default() };
        place.note(Mark::SnapshotEnd(stamp));
        place.note(Mark::Change(12));
        assert_eq!((place.from.incarnation, place.from.revision), (2, 12));
        place.note(Mark::Bookmark(v1::Stamp { incarnation: 2, revision: 40, ..stamp }));
        assert_eq!(place.from.revision, 40);
    }
}
