//! The fencer by itself, for the tests of this crate; in the product it is the hidden verb `fencer`
//! of `regent`. Called as `regent-fencer fencer <stage> ...`, like the product.

use std::process::ExitCode;

fn main() -> ExitCode {
    let done = regent_fencer::Options::parse(std::env::args_os().skip(2))
        .map_err(|e| Box::new(e) as Box<dyn std::error::Error>)
        .and_then(|options| regent_fencer::run(&options).map_err(Into::into));
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}: {:?}", error.source());
            ExitCode::FAILURE
        }
    }
}
