//! TCP connections to servers, encrypted where the configuration says so.

use super::{Endpoint, TlsMode, TlsOptions};
use crate::error::{Class, Context, Error, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
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

/// Opens a TCP connection, with small writes sent at once and dead peers noticed by the kernel.
pub(crate) async fn connect_tcp(endpoint: &Endpoint) -> Result<TcpStream> {
    let connect = TcpStream::connect(endpoint.address());
    let tcp = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(connected) => connected.unavailable(|| format!("connect to {endpoint}"))?,
        Err(_) => {
            let secs = CONNECT_TIMEOUT.as_secs();
            return Err(Error::unavailable(format!(
                "connect to {endpoint}: no answer in {secs} s"
            )));
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
        .unavailable(|| format!("TLS with {endpoint}"))?;
    Ok(Box::new(stream))
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
