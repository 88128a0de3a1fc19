//! The simulator on trial.

use super::*;
