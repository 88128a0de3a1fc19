//! Making and reading a CA, signing leaves. P-256 throughout: every TLS library verifies it fast.

use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{PkiError, read_text};

/// A certificate begins to be valid this long before it is made: the peers' clocks may be behind.
const BACKDATE: time::Duration = time::Duration::minutes(5);

/// A pair in PEM.
pub(super) struct Pair {
    pub cert_pem: String,
    pub key_pem: String,
    pub valid_for: Duration,
}

/// A CA that can sign.
pub(super) struct Authority {
    pub trust: String,
    issuer: Issuer<'static, KeyPair>,
    not_after: OffsetDateTime,
}

/// Makes a CA.
pub(super) fn make(trust: &str, days: u32) -> Result<Pair, PkiError> {
    let mut params = CertificateParams::default();
    // Two CAs of one trust domain must have different names, or a verifier may try the wrong one.
    let (key, serial) = (KeyPair::generate()?, serial());
    let name = format!("{trust} CA {}", &hex(&serial)[..8]);
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names.push(uri(&format!("spiffe://{trust}"))?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + time::Duration::days(i64::from(days));
    let cert = params.self_signed(&key)?;
    Ok(Pair {
        cert_pem: cert.pem(),
        key_pem: key.serialize_pem(),
        valid_for: super::days_long(days),
    })
}

impl Authority {
    /// Reads `<stem>.crt` and `<stem>.key` of `dir`.
    pub fn read(dir: &Path, stem: &str) -> Result<Self, PkiError> {
        let (cert_path, key_path) =
            (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")));
        let (cert_pem, key_pem) = (read_text(&cert_path)?, read_text(&key_path)?);
        let bad =
            |path: &Path, problem: String| PkiError::Content { path: path.to_owned(), problem };
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|e| bad(&cert_path, format!("it is no PEM certificate: {e}")))?;
        let (_, cert) = X509Certificate::from_der(&der)
            .map_err(|e| bad(&cert_path, format!("it is no certificate: {e}")))?;
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|e| bad(&key_path, format!("it is no private key: {e}")))?;
        if cert.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            let problem = format!(
                "it does not belong to {}; a rotation may have been interrupted: run its last \
                 step again",
                cert_path.display()
            );
            return Err(bad(&key_path, problem));
        }
        let not_after = cert.validity().not_after.to_datetime();
        if not_after <= OffsetDateTime::now_utc() {
            return Err(bad(&cert_path, format!("the CA ended at {not_after}; rotate it")));
        }
        let trust = trust_of(&cert)
            .ok_or_else(|| bad(&cert_path, "it has no SPIFFE URI; make it with init".to_owned()))?;
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { trust, issuer, not_after })
    }

    /// Signs a leaf for `spiffe`, valid for `days` but never longer than the CA.
    pub fn issue(&self, spiffe: &str, names: &[String], days: u32) -> Result<Pair, PkiError> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, common_name(spiffe));
        params.subject_alt_names.push(uri(spiffe)?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial()));
        let now = OffsetDateTime::now_utc();
        params.not_before = now - BACKDATE;
        params.not_after = self.not_after.min(now + time::Duration::days(i64::from(days)));
        let key = KeyPair::generate()?;
        let valid_for = (params.not_after - now).try_into().unwrap_or(Duration::ZERO);
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { cert_pem: cert.pem(), key_pem: key.serialize_pem(), valid_for })
    }
}

/// X.509 allows 64 characters here; the SPIFFE URI is what counts.
fn common_name(spiffe: &str) -> String {
    let path = spiffe.splitn(4, '/').nth(3).unwrap_or(spiffe);
    path.chars().take(64).collect()
}

fn trust_of(cert: &X509Certificate<'_>) -> Option<String> {
    let san = cert.subject_alternative_name().ok()??;
    san.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://").map(str::to_owned),
        _ => None,
    })
}

fn uri(text: &str) -> Result<SanType, PkiError> {
    Ok(SanType::URI(text.try_into()?))
}

/// 16 random bytes, positive as DER wants it.
fn serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
