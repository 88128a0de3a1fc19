//! The one binary: everything is in `regent-cli`, so that it can be tested as a library.

use std::process::ExitCode;

fn main() -> ExitCode {
    regent_cli::main()
}
