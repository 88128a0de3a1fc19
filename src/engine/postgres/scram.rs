//! SCRAM verifiers of Regent's own roles.
//!
//! The thousands of rounds of a usual verifier slow down who guesses a word that people chose. These
//! passwords are 256 random bits, which nobody guesses at any speed; and each proof that needs a fresh
//! session, each standby that comes back to a new primary, waits for the rounds. So there is one.

use sha2::{Digest, Sha256};

use crate::orders::Secret;

const BLOCK: usize = 64;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The hexadecimal digits of a [`Secret::random`]: a shorter one was put into the file by people.
const RANDOM: usize = 64;

/// What a server keeps of the password of one of Regent's roles.
pub(super) fn verifier(secret: &Secret) -> String {
    match secret.0.len() < RANDOM {
        true => of_people(secret),
        false => verifier_of(secret, rand::random()),
    }
}

/// Of a password that people may have chosen: with as many rounds as usual.
pub(super) fn of_people(secret: &Secret) -> String {
    postgres_protocol::password::scram_sha_256(secret.0.as_bytes())
}

fn verifier_of(secret: &Secret, salt: [u8; 16]) -> String {
    // PBKDF2 of one round is one HMAC over the salt and the number of the first block.
    let salted = hmac(secret.0.as_bytes(), &[&salt[..], &1u32.to_be_bytes()].concat());
    let stored = Sha256::digest(hmac(&salted, b"Client Key"));
    let server = hmac(&salted, b"Server Key");
    format!("SCRAM-SHA-256$1:{}${}:{}", base64(&salt), base64(&stored), base64(&server))
}

/// RFC 2104.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut padded = [0u8; BLOCK];
    match key.len() > BLOCK {
        true => padded[..32].copy_from_slice(&Sha256::digest(key)),
        false => padded[..key.len()].copy_from_slice(key),
    }
    let with = |pad: u8| padded.map(|byte| byte ^ pad);
    let inner = Sha256::new().chain_update(with(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(with(0x5c)).chain_update(inner).finalize().into()
}

fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |index: usize| u32::from(three.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place)) & 63;
            let letter = ALPHABET[digit as usize] as char;
            text.push(if place > three.len() { '=' } else { letter });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_hmac_is_that_of_rfc_4231() {
        let short = hmac(&[0x0b; 20], b"Hi There");
        assert_eq!(hex(&short), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
        let long = hmac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(hex(&long), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (text, coded) in
            [("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(text.as_bytes()), coded);
        }
    }

    #[test]
    fn a_verifier_has_one_round_and_a_salt_of_its_own() {
        let secret = Secret::random();
        assert!(verifier(&secret).starts_with("SCRAM-SHA-256$1:"));
        assert_ne!(verifier(&secret), verifier(&secret));
        assert_eq!(verifier_of(&secret, [7; 16]), verifier_of(&secret, [7; 16]));
    }
}
