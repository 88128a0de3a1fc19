//! `regent lab cut`: drops packets between machines of a lab that has its own network.

use std::path::PathBuf;

use regent_lab::network::{Cut, NetworkError};
use serde_json::json;

use super::{Context, from_lab, open};
use crate::error::Outcome;

/// Options of `lab cut`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  regent lab cut --dir /tmp/lab pg1
  regent lab cut --dir /tmp/lab pg1 --from pg2 --from node-3
  regent lab cut --dir /tmp/lab node-1 --from b --one-way

A machine is an instance (pg1), a node (node-1), or `client`, where this command runs; a zone (a)
means all of its machines, which still reach each other. Cuts add up; `regent lab heal` mends all.
")]
pub struct Args {
    /// Directory of the lab
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Which machine, or which zone
    #[arg(value_name = "MACHINE")]
    pub who: String,
    /// From whom, also several times; from everybody if not said
    #[arg(long, value_name = "MACHINE")]
    pub from: Vec<String>,
    /// Drop only what it sends: it still hears the others
    #[arg(long)]
    pub one_way: bool,
}

/// Runs it.
pub fn run(context: &Context, args: Args) -> Outcome {
    let what = "cannot cut links";
    let lab = open(&args.dir)?;
    let network = lab.network.as_ref().ok_or(NetworkError::None);
    let cut = Cut { who: args.who, from: args.from, one_way: args.one_way };
    let pairs = network
        .and_then(|network| network.cut(std::slice::from_ref(&cut)))
        .map_err(|error| from_lab(what, error.into()))?;
    let text = || format!("{} links of {} are cut (each direction is one)", pairs.len(), cut.who);
    context.out.value(|| json!({ "cut": pairs }), text);
    Ok(())
}
