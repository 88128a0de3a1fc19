//! The passwords of Regent's roles, in libpq's format, in a file for the server's user alone.

use std::path::Path;

use super::durable::{self, Owner};
use crate::error::DiskError;
use crate::orders::{Secret, Secrets};

/// Writes the passwords, synced. Other instances need the same file.
pub(super) fn write(path: &Path, secrets: &Secrets, owner: Owner) -> Result<(), DiskError> {
    let roles = [
        (super::AGENT, &secrets.agent),
        (super::REPLICATION, &secrets.replication),
        (super::REWIND, &secrets.rewind),
    ];
    let mut text = String::new();
    for (role, secret) in roles {
        let word = secret.0.replace('\\', "\\\\").replace(':', "\\:");
        text += &format!("*:*:*:{role}:{word}\n");
    }
    durable::make_dir(durable::parent(path), owner)?;
    durable::write(path, &text, owner)
}

/// The password of one role.
pub(super) fn password(path: &Path, role: &str) -> Result<Secret, DiskError> {
    let text = durable::read(path)?.unwrap_or_default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let parts = split(line);
        if let [_, _, _, user, word] = parts.as_slice()
            && (user == role || user == "*")
        {
            return Ok(Secret(word.clone()));
        }
    }
    Err(DiskError::Unreadable { what: format!("the password of {role}"), path: path.to_owned() })
}

/// Splits at colons; a backslash takes the next character as it is.
fn split(line: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let plain = match c {
            ':' => {
                parts.push(String::new());
                continue;
            }
            '\\' => chars.next().unwrap_or('\\'),
            c => c,
        };
        if let Some(last) = parts.last_mut() {
            last.push(plain);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_and_backslashes_in_a_password_survive() {
        assert_eq!(split(r"*:*:*:u:a\:b\\c"), ["*", "*", "*", "u", r"a:b\c"]);
    }
}
