//! What `synchronous_commit` is in each process of a server, read from outside.
//!
//! PostgreSQL keeps the setting in a variable of that name, an `int` by the levels of `xact.h` (13 to
//! 18: 0 off, 1 local, 2 remote_write, 3 on, 4 remote_apply), and exports the symbol for extensions.
//! All processes are forks of the first one, so it has one address in all of them. Nothing is
//! written, and nothing stops: a page of `/proc/<pid>/mem` is read, which the owner of a process may,
//! unless the kernel is told otherwise (`kernel.yama.ptrace_scope`). Whether the address is right is
//! tried by the caller, on a session of its own, before anything is concluded.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

const SYMBOL: &[u8] = b"synchronous_commit";
/// Sizes and numbers of ELF, 64 bit, little endian (the gABI).
const IDENT: &[u8] = b"\x7fELF\x02\x01";
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const DYNSYM: u32 = 11;
const FIXED: u16 = 2;

/// Where the variable is, in which server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    postmaster: i32,
    /// When that process began, in ticks since boot: pids come again.
    began: u64,
    address: u64,
}

/// One process of the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    /// Its pid on this host.
    pub(super) outside: i32,
    /// What the server itself calls it.
    pub(super) inside: i32,
}

impl Known {
    /// Looks it up in the program that the process runs.
    pub(super) fn find(postmaster: i32) -> Result<Self, String> {
        let began = began(postmaster).ok_or("the server's first process is gone")?;
        let exe = format!("/proc/{postmaster}/exe");
        let image = fs::read(&exe).map_err(|e| format!("cannot read the server's program: {e}"))?;
        let (value, is_fixed) =
            symbol(&image).ok_or("the server's program does not name the variable")?;
        let base = if is_fixed { 0 } else { base(postmaster)? };
        Ok(Self { postmaster, began, address: base.wrapping_add(value) })
    }

    /// Whether it is still that server.
    pub(super) fn is_of(&self, postmaster: i32) -> bool {
        self.postmaster == postmaster && began(postmaster) == Some(self.began)
    }
}

fn began(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may have anything in it; the start is field 22 of all.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Where the program begins in the process.
fn base(pid: i32) -> Result<u64, String> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).map_err(|e| e.to_string())?;
    let exe = exe.to_string_lossy();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .map_err(|e| format!("cannot read the server's map: {e}"))?;
    let of_program =
        |line: &&str| line.ends_with(&*exe) && line.split_whitespace().nth(2) == Some("00000000");
    let line = maps.lines().find(of_program).ok_or("the server's map does not have its program")?;
    let start = line.split('-').next().unwrap_or_default();
    u64::from_str_radix(start, 16).map_err(|e| e.to_string())
}

/// The processes that the first one has made. One that comes or goes meanwhile may hide another; the next
/// look, a moment later, sees both. Who has to miss none asks the fencer's host ([`crate::Postmaster`]).
pub(super) fn processes(postmaster: i32) -> Result<Vec<Process>, String> {
    let path = format!("/proc/{postmaster}/task/{postmaster}/children");
    let text =
        fs::read_to_string(path).map_err(|e| format!("cannot list the server's processes: {e}"))?;
    let inside = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        Some(Process { outside: pid, inside: line.split_whitespace().last()?.parse().ok()? })
    };
    // One that has ended meanwhile has no session.
    Ok(text.split_whitespace().filter_map(|pid| inside(pid.parse().ok()?)).collect())
}

/// What the process has; `None`: it is gone.
pub(super) fn level_of(known: &Known, pid: i32) -> Result<Option<i32>, String> {
    let mut bytes = [0; 4];
    let read = File::open(format!("/proc/{pid}/mem"))
        .and_then(|memory| memory.read_exact_at(&mut bytes, known.address));
    match read {
        Ok(()) => Ok(Some(i32::from_ne_bytes(bytes))),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            Err(format!("the server's processes may not be looked into: {e}"))
        }
        // Its memory is gone before its entry is.
        Err(_) => Ok(None),
    }
}

fn at<const N: usize>(image: &[u8], from: usize) -> Option<[u8; N]> {
    image.get(from..from.checked_add(N)?)?.try_into().ok()
}

fn u16_at(image: &[u8], from: usize) -> Option<u16> {
    at(image, from).map(u16::from_le_bytes)
}

fn u32_at(image: &[u8], from: usize) -> Option<u32> {
    at(image, from).map(u32::from_le_bytes)
}

fn usize_at(image: &[u8], from: usize) -> Option<usize> {
    at(image, from).map(u64::from_le_bytes)?.try_into().ok()
}

/// Value of the exported variable, and whether the program lies where it was linked for.
fn symbol(image: &[u8]) -> Option<(u64, bool)> {
    if !image.starts_with(IDENT) {
        return None;
    }
    let is_fixed = u16_at(image, 16)? == FIXED;
    let (table, count) = (usize_at(image, 40)?, usize::from(u16_at(image, 60)?));
    let section = |number: usize| {
        let from = table.checked_add(number.checked_mul(SECTION_BYTES)?)?;
        image.get(from..from.checked_add(SECTION_BYTES)?)
    };
    let content = |header: &[u8]| {
        let (from, bytes) = (usize_at(header, 24)?, usize_at(header, 32)?);
        image.get(from..from.checked_add(bytes)?)
    };
    let dynamic =
        (0..count).filter_map(section).find(|header| u32_at(header, 4) == Some(DYNSYM))?;
    let names = content(section(usize::try_from(u32_at(dynamic, 40)?).ok()?)?)?;
    content(dynamic)?.chunks_exact(SYMBOL_BYTES).find_map(|entry| {
        let name = names.get(usize::try_from(u32_at(entry, 0)?).ok()?..)?;
        let is_it = name.strip_prefix(SYMBOL)?.first() == Some(&0);
        // Defined here, and an `int`.
        let (section, value, bytes) =
            (u16_at(entry, 6)?, at(entry, 8).map(u64::from_le_bytes)?, usize_at(entry, 16)?);
        (is_it && section != 0 && bytes == 4).then_some((value, is_fixed))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_program_names_no_variable() {
        assert_eq!(symbol(b""), None);
        assert_eq!(symbol(IDENT), None);
        let mut broken = IDENT.to_vec();
        // A table of sections beyond the end.
        broken.resize(64, 0xff);
        assert_eq!(symbol(&broken), None);
        // This test is a program, and has no such variable.
        let own = fs::read("/proc/self/exe").unwrap_or_default();
        assert!(own.starts_with(IDENT));
        assert_eq!(symbol(&own), None);
    }
}
