//! `regent haproxy-sync`: tells HAProxy of a flip at once, where its own checks would notice it at
//! their next turn.
//!
//! It moves the *health* of servers, which HAProxy's checks go on to judge, and nothing that would
//! stay: with this process gone, or wrong, the checks alone decide, as if it had never been there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use regent_rpc::pb::v1;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::Context;
use super::routes::follow::{Follower, Wanted, own_name};
use crate::connect::Cluster;
use crate::error::{Kind, Outcome};
use crate::render::text;

/// HAProxy answers its socket in its event loop.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Between two tries to tell a HAProxy that is not there.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Most bytes of an answer: it is empty if all went well.
const MAX_ANSWER: u64 = 4_096;

/// Options of `haproxy-sync`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
HAProxy must run what `regent routes export --format haproxy --socket PATH` prints, or name its
write section <service>-write and its servers as the instances are named.

Examples:
  regent haproxy-sync orders --socket /run/haproxy/admin.sock
")]
pub struct Args {
    /// The service
    pub service: String,
    /// HAProxy's stats socket, with level admin
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Section of HAProxy that takes writes; the name of the service and `-write` unless given
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// What it calls itself in `regent routes`; this verb, its process and its host unless given
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// Runs it until it is told to end.
pub async fn run(context: &Context, args: Args) -> Outcome {
    let cluster = Cluster::open(&context.globals)?;
    let mut stop = super::Stop::listen()?;
    let backend = args.backend.unwrap_or_else(|| format!("{}-write", args.service));
    let wanted = Wanted {
        service: args.service,
        client: None,
        router: Some(args.name.unwrap_or_else(|| own_name("haproxy-sync"))),
    };
    let mut follower = Follower::new(&cluster, wanted);
    // The newest table, while HAProxy was not told of it.
    let mut waits: Option<v1::Routes> = None;
    loop {
        tokio::select! {
            next = follower.next() => match next {
                Ok((_, routes)) => waits = Some(routes),
                // It outlives the nodes, as HAProxy does.
                Err(error) if error.kind == Kind::Unreachable => {
                    tracing::warn!(%error, "no node answers");
                    continue;
                }
                Err(error) => return Err(error),
            },
            () = tokio::time::sleep(AGAIN_AFTER), if waits.is_some() => {}
            () = stop.told() => return Ok(()),
        }
        let Some(routes) = waits.take() else { continue };
        let Some(commands) = commands(&backend, &routes) else { continue };
        if commands.is_empty() {
            follower.applied(&routes).await;
            continue;
        }
        if let Err(why) = push(&args.socket, &commands).await {
            // Its own checks judge meanwhile.
            tracing::warn!(why, "HAProxy was not told");
            waits = Some(routes);
            continue;
        }
        follower.applied(&routes).await;
        told(context, &routes);
    }
}

fn told(context: &Context, routes: &v1::Routes) {
    let epoch = routes.epoch.as_ref().map(text::epoch).unwrap_or_default();
    let primary = routes.write.as_ref().map(|one| &one.instance);
    context.out.value(
        || json!({ "epoch": epoch, "primary": primary }),
        || match primary {
            Some(primary) => format!("epoch {epoch}: {primary} takes writes"),
            None => format!("epoch {epoch}: nobody takes writes: {}", routes.closed),
        },
    );
}

/// What HAProxy is told; `None`: nothing, what it knows stands.
fn commands(backend: &str, routes: &v1::Routes) -> Option<String> {
    if routes.write.is_none() && routes.holds {
        return None;
    }
    if routes.drains {
        // It has no way to hold clients that would not stay if this process died. Sessions go on
        // until the fence ends them; nothing is to be done before it, so it need not wait.
        return Some(String::new());
    }
    let primary = routes.write.as_ref().map(|one| one.instance.as_str());
    let set =
        |instance: &str, health: &str| format!("set server {backend}/{instance} health {health}");
    // Down before up: two servers that are up take nobody.
    let others = routes.instances.iter().map(|one| one.instance.as_str());
    let down = others.filter(|one| Some(*one) != primary).map(|one| set(one, "down"));
    let up = primary.map(|one| set(one, "up"));
    Some(down.chain(up).collect::<Vec<_>>().join(";"))
}

/// Gives HAProxy these commands; what it says against them is an error.
async fn push(socket: &Path, commands: &str) -> Result<(), String> {
    let at = |error: std::io::Error| format!("{}: {error}", socket.display());
    let told = async {
        let mut stream = UnixStream::connect(socket).await.map_err(at)?;
        stream.write_all(format!("{commands}\n").as_bytes()).await.map_err(at)?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut answer).await.map_err(at)?;
        match answer.trim() {
            "" => Ok(()),
            said => Err(format!("{}: {said}", socket.display())),
        }
    };
    match tokio::time::timeout(ANSWER_WITHIN, told).await {
        Ok(told) => told,
        Err(_) => Err(format!("{}: no answer within {ANSWER_WITHIN:?}", socket.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(instance: &str) -> v1::RouteEndpoint {
        v1::RouteEndpoint { instance: instance.into(), ..Default::default() }
    }

    fn routes(primary: Option<&str>) -> v1::Routes {
        let instances = ["a", "b", "c"].map(one).into();
        v1::Routes { write: primary.map(one), instances, ..Default::default() }
    }

    #[test]
    fn the_others_are_down_before_the_primary_is_up() {
        let told = commands("w", &routes(Some("b"))).expect("something to say");
        let all = ["a health down", "c health down", "b health up"];
        assert_eq!(told, all.map(|one| format!("set server w/{one}")).join(";"));
        let nobody = commands("w", &routes(None)).expect("something to say");
        assert!(!nobody.contains("up") && nobody.matches("down").count() == 3, "{nobody}");
    }

    #[test]
    fn what_a_node_cannot_prove_is_not_taken_back_from_a_primary_that_holds() {
        assert_eq!(commands("w", &v1::Routes { holds: true, ..routes(None) }), None);
    }
}
