//! TCP connections to servers, encrypted where the configuration says so.

use super::{Endpoint, TlsMode, TlsOptions};
use crate::error::{Class, Context, Error, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{AlertDescription, CertificateError};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long to wait for a server to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection, encrypted or not.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, encrypted or not.
pub(crate) type Stream = Box<dyn Io>;

/// What helps where nobody answers.
pub(crate) const UNREACHABLE: &str =
    "see that the server runs and listens there, and that host and port of its url are right";

/// Opens a TCP connection, with small writes sent at once and dead peers noticed by the kernel.
pub(crate) async fn connect_tcp(endpoint: &Endpoint) -> Result<TcpStream> {
    let connect = TcpStream::connect(endpoint.address());
    let tcp = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(connected) => connected
            .unavailable(|| format!("connect to {endpoint}"))
            .map_err(|error| error.hint(UNREACHABLE))?,
        Err(_) => {
            let secs = CONNECT_TIMEOUT.as_secs();
            return Err(Error::unavailable(format!(
                "connect to {endpoint}: no answer in {secs} s"
            ))
            .hint(UNREACHABLE));
        }
    };
    tcp.set_nodelay(true).unavailable(|| format!("connect to {endpoint}"))?;
    Ok(tcp)
}

/// Opens a connection that is encrypted from its first byte, if at all (as Redis does it).
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Stream> {
    let tcp = connect_tcp(endpoint).await?;
    match endpoint.tls.mode {
        TlsMode::Off => Ok(Box::new(tcp)),
        TlsMode::Require | TlsMode::Verify => upgrade(tcp, endpoint).await,
    }
}

/// Encrypts a connection that began in the clear (as MySQL does it).
pub(crate) async fn upgrade(tcp: TcpStream, endpoint: &Endpoint) -> Result<Stream> {
    let config = client_config(&endpoint.tls)?;
    let name = ServerName::try_from(endpoint.host.clone())
        .class(Class::Usage, || format!("{} as a TLS host name", endpoint.host))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .map_err(|error| explain(&endpoint.to_string(), error))?;
    Ok(Box::new(stream))
}

/// Reads everything that the options name.
///
/// # Errors
/// Usage, naming the file that is missing or no certificate or key.
pub(crate) fn check(options: &TlsOptions) -> Result<()> {
    match options.mode {
        TlsMode::Off => Ok(()),
        TlsMode::Require | TlsMode::Verify => client_config(options).map(drop),
    }
}

/// What a failed handshake, or a failed read or write on an encrypted connection, means for the
/// operator. What either side thinks of a certificate is a matter of configuration.
pub(crate) fn explain(peer: &str, error: io::Error) -> Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let (what, hint) = match tls {
        Some(rustls::Error::InvalidCertificate(why)) => refused_certificate(why),
        Some(rustls::Error::AlertReceived(alert)) => refused_ours(*alert),
        _ => {
            let error = Error::unavailable(format!("connection with {peer}")).source(error);
            return error.hint(UNREACHABLE);
        }
    };
    Error::usage(format!("TLS with {peer}: {what}")).hint(hint)
}

/// Whether it is a failure that [`explain`] has words for.
pub(crate) fn is_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
}

fn refused_certificate(why: &CertificateError) -> (String, &'static str) {
    use CertificateError as E;
    let what = match why {
        E::UnknownIssuer | E::BadSignature => {
            return (
                "the server's certificate is not signed by an authority that pitr trusts".into(),
                "set tls.ca to the certificate of the authority that signed it",
            );
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            return (
                format!("the server's certificate is for another name: {why}"),
                "use a name in the url that the certificate has, or give the server one for this \
                 name",
            );
        }
        E::Expired | E::ExpiredContext { .. } => "has expired",
        E::NotValidYet | E::NotValidYetContext { .. } => "is not valid yet",
        E::Revoked => "was revoked",
        _ => "is not usable",
    };
    (
        format!("the server's certificate {what}: {why}"),
        "give the server a certificate that is valid (and check the clocks of both hosts)",
    )
}

/// The server ended the conversation because of the certificate that it got from pitr, or not.
fn refused_ours(alert: AlertDescription) -> (String, &'static str) {
    (
        format!("the server refuses: {alert:?}"),
        "check tls.cert and tls.key: the server may want a client certificate that is valid and \
         signed by an authority that it trusts",
    )
}

fn client_config(options: &TlsOptions) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .class(Class::Bug, || "set up TLS".into())?;
    let builder = if options.mode == TlsMode::Verify {
        let mut roots = RootCertStore::empty();
        match &options.ca {
            Some(ca) => {
                for certificate in certificates(ca)? {
                    roots
                        .add(certificate)
                        .class(Class::Usage, || format!("trust {}", ca.display()))?;
                }
            }
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        builder.with_root_certificates(roots)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    };
    match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => {
            let key = PrivateKeyDer::from_pem_file(key)
                .class(Class::Usage, || format!("read TLS key {}", key.display()))?;
            builder
                .with_client_auth_cert(certificates(cert)?, key)
                .class(Class::Usage, || format!("use TLS certificate {}", cert.display()))
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        _ => Err(Error::usage("tls: `cert` and `key` go together")
            .hint("give both for a client certificate, or neither")),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || -> Result<Vec<_>, rustls_pki_types::pem::Error> {
        CertificateDer::pem_file_iter(path)?.collect()
    };
    read().class(Class::Usage, || format!("read TLS certificates {}", path.display()))
}

/// Takes any certificate, as `mode = "require"` says: encrypted, but not authenticated.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
