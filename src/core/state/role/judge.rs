//! STUB until the handlers are merged.
use super::row::ServiceRole;
use crate::id::InstanceName;
use crate::role::{CompleteProof, Loss, OutProof};
use crate::spec::ServiceSpec;
/// .
pub fn out(_: &ServiceRole, _: &ServiceSpec) -> Result<OutProof, String> {
    Err(String::new())
}
/// .
pub fn complete(
    _: &ServiceRole,
    _: &ServiceSpec,
    _: &InstanceName,
    _: Loss,
) -> Result<CompleteProof, String> {
    Err(String::new())
}
/// .
pub fn free(_: &ServiceRole, _: &ServiceSpec, _: &InstanceName) -> Result<(), String> {
    Err(String::new())
}
