//! The handshake, from both sides: logging in to a server, and letting one log in to pitr.
//!
//! As a client pitr knows the plugins of [`plugin`]; `caching_sha2_password` with the password in
//! the clear only inside TLS, else encrypted with the server's RSA key. As a server it knows one
//! account with a password made for the occasion, so it can check the scramble itself and needs
//! neither TLS nor a key (MySQL manual, "Connection Phase").
//!
//! **Invariant:** a password never leaves in the clear outside of TLS and is in no message.

mod plugin;

pub(crate) use plugin::Plugin;

use super::event::{Reader, put_lenenc};
use super::packet::{ANSWER_LIMIT, PacketCodec, Packets, receive, send};
use crate::engine::tls::{self, Stream};
use crate::engine::{Endpoint, Secret, TlsMode};
use crate::error::{Class, Context, Error, Result};
use mysql_common::constants::CapabilityFlags as Caps;
use plugin::{NONCE_BYTES, answer_salt};
use rand::Rng;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_util::codec::{Decoder, FramedParts};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// The largest packet that pitr announces to take: the largest that there is.
const MAX_PACKET: u32 = 1 << 30;

/// `utf8mb4_general_ci`, which every server since 5.5 knows.
const COLLATION: u8 = 45;

/// The first packet of a connection, sent by the server (`HandshakeV10`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// As the server announces it.
    pub(crate) server_version: String,
    /// Number of the connection at the server.
    pub(crate) connection_id: u32,
    nonce: [u8; NONCE_BYTES],
    capabilities: Caps,
    plugin: Vec<u8>,
}

impl Greeting {
    /// A greeting of pitr as a server of this version.
    pub(crate) fn new(server_version: &str, connection_id: u32, plugin: Plugin) -> Self {
        let mut random = rand::rng();
        Self {
            server_version: server_version.to_owned(),
            connection_id,
            // Clients end the nonce at a NUL, and `$` has a meaning in stored passwords.
            nonce: std::array::from_fn(|_| random.random_range(b'%'..=b'~')),
            capabilities: Caps::CLIENT_LONG_PASSWORD
                | Caps::CLIENT_LONG_FLAG
                | Caps::CLIENT_CONNECT_WITH_DB
                | Caps::CLIENT_PROTOCOL_41
                | Caps::CLIENT_TRANSACTIONS
                | Caps::CLIENT_SECURE_CONNECTION
                | Caps::CLIENT_PLUGIN_AUTH
                | Caps::CLIENT_CONNECT_ATTRS
                | Caps::CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA,
            plugin: plugin.name().to_vec(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut to = vec![10];
        to.extend_from_slice(self.server_version.as_bytes());
        to.push(0);
        to.extend_from_slice(&self.connection_id.to_le_bytes());
        let (first, second) = self.nonce.split_at(8);
        to.extend_from_slice(first);
        to.push(0);
        let [a, b, c, d] = self.capabilities.bits().to_le_bytes();
        // Status 2: autocommit. 21: length of the nonce with its NUL.
        to.extend_from_slice(&[a, b, u8::MAX, 2, 0, c, d, 21]);
        to.extend_from_slice(&[0; 10]);
        to.extend_from_slice(second);
        to.push(0);
        to.extend_from_slice(&self.plugin);
        to.push(0);
        to
    }

    /// The plugin that the first answer is for. The greeting names the server's default, and its
    /// random bytes fit MySQL's own plugins only; for another one the server asks anew.
    fn first_plugin(&self) -> Plugin {
        match Plugin::named(&self.plugin) {
            Some(Plugin::Native) => Plugin::Native,
            _ => Plugin::CachingSha2,
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut at = Reader(bytes);
        if at.u8()? != 10 {
            return None;
        }
        let server_version = String::from_utf8_lossy(at.until_nul()?).into_owned();
        let connection_id = at.u32()?;
        let first = *at.array::<8>()?;
        at.u8()?;
        let low = u32::from(at.u16()?);
        let _collation_and_status = at.bytes(3)?;
        let capabilities = Caps::from_bits_truncate(u32::from(at.u16()?) << 16 | low);
        let nonce_len = usize::from(at.u8()?);
        at.bytes(10)?;
        let second = at.bytes(nonce_len.saturating_sub(8).max(13))?;
        let mut nonce = [0; NONCE_BYTES];
        for (to, from) in nonce.iter_mut().zip(first.iter().chain(second)) {
            *to = *from;
        }
        // Some old servers leave the NUL out.
        let plugin = at.0.split(|&b| b == 0).next().unwrap_or_default().to_vec();
        Some(Self { server_version, connection_id, nonce, capabilities, plugin })
    }
}

/// Numbers of "access denied".
const ACCESS_DENIED: [u16; 3] = [1044, 1045, 1698];

/// `ER_SECURE_TRANSPORT_REQUIRED`.
const SECURE_TRANSPORT_REQUIRED: u16 = 3159;

/// What a server says that ends the connection, or the statement for no fault of its own: it shuts
/// down, or somebody ended the session or the statement ("Server Error Message Reference" in the
/// manual; 1927 in MariaDB's).
pub(super) const ENDED: [u16; 8] = [1053, 1077, 1079, 1152, 1184, 1317, 1927, 3169];

/// An error that a server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerError {
    /// Its number: <https://dev.mysql.com/doc/mysql-errors/9.7/en/server-error-reference.html>.
    pub(crate) code: u16,
    /// Its text.
    pub(crate) message: String,
}

impl ServerError {
    /// Reads a packet that begins with 0xff.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        let mut at = Reader(packet);
        if at.u8()? != 0xff {
            return None;
        }
        let code = at.u16()?;
        // An SQL state stands before the text, except in errors from before the login.
        let text = match at.0.split_first_chunk::<6>() {
            Some(([b'#', ..], text)) => text,
            _ => at.0,
        };
        Some(Self { code, message: String::from_utf8_lossy(text).into_owned() })
    }

    /// Writes the packet.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = vec![0xff];
        to.extend_from_slice(&self.code.to_le_bytes());
        to.extend_from_slice(b"#HY000");
        to.extend_from_slice(self.message.as_bytes());
        to
    }

    /// What it means for the operator, said of `peer`.
    pub(crate) fn for_operator(&self, peer: &str) -> Error {
        let Self { code, message } = self;
        let (class, hint) = match *code {
            _ if ACCESS_DENIED.contains(code) => {
                (Class::Usage, "check user and password, and that the user may connect from here")
            }
            1142 | 1227 => (
                Class::Usage,
                "grant what is missing: GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO …",
            ),
            3118 | 4151 => (Class::Usage, "unlock the account: ALTER USER … ACCOUNT UNLOCK"),
            1820 | 1862 => (Class::Usage, "the password has expired: ALTER USER … IDENTIFIED BY …"),
            SECURE_TRANSPORT_REQUIRED => {
                (Class::Usage, "the server wants TLS: set `tls = { mode = \"verify\", ca = … }`")
            }
            _ => return Error::unavailable(format!("{peer}: error {code}: {message}")),
        };
        Error::new(class, format!("{peer}: error {code}: {message}")).hint(hint)
    }

    /// The same while logging in, where what the configuration leaves out may be the reason.
    pub(crate) fn at_login(&self, endpoint: &Endpoint) -> Error {
        let error = self.for_operator(&endpoint.to_string());
        let more = match (endpoint.tls.mode, &endpoint.tls.cert) {
            _ if !ACCESS_DENIED.contains(&self.code) => return error,
            (TlsMode::Off, _) => {
                "an account with REQUIRE SSL or X509 needs `tls = { mode = \"verify\", … }`"
            }
            (_, None) => {
                "an account with REQUIRE X509 needs a client certificate: tls.cert, tls.key"
            }
            (_, Some(_)) => "the account may want another client certificate (REQUIRE SUBJECT)",
        };
        let hint = error.hint_text().map_or(more.into(), |hint| format!("{hint}; {more}"));
        error.hint(hint)
    }
}

/// What pitr says of a server that wants a proof of the password which it cannot give.
pub(super) fn unknown_plugin(peer: &str, plugin: &str) -> Error {
    Error::usage(format!("{peer} wants the account authenticated by {plugin}, unknown to pitr"))
        .hint(
            "give pitr an account of its own: on MySQL CREATE USER … IDENTIFIED WITH \
             caching_sha2_password BY …, on MariaDB CREATE USER … IDENTIFIED VIA ed25519 USING \
             PASSWORD(…)",
        )
}

/// What pitr says of a server that has no TLS where the configuration wants it.
pub(super) fn no_tls(peer: &str) -> Error {
    Error::refused(format!("{peer} offers no TLS"))
        .hint("give the server a certificate, or set `tls = { mode = \"off\" }`")
}

/// Connects and logs in, over TLS if the endpoint says so. The next command begins with
/// [`PacketCodec::restart`].
///
/// # Errors
/// Unavailable, if the server cannot be reached. Usage, if it does not let us in.
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<(Packets<Stream>, Greeting)> {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(endpoint)).await {
        Ok(result) => result,
        Err(_) => Err(Error::unavailable(format!(
            "log in to {endpoint}: no answer in {} s",
            HANDSHAKE_TIMEOUT.as_secs()
        ))),
    }
}

/// Connects to a server on this host through its socket file and logs in as `account`, whose
/// address is not used. Nobody can listen in there, so it counts as encrypted.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn connect_local(
    path: &Path,
    account: &Endpoint,
) -> Result<(Packets<Stream>, Greeting)> {
    let peer = path.display().to_string();
    let login = async {
        let socket = UnixStream::connect(path).await;
        let socket: Stream = Box::new(socket.unavailable(|| format!("connect to {peer}"))?);
        let mut packets = PacketCodec::new(ANSWER_LIMIT).framed(socket);
        let (greeting, caps) = greeted(&mut packets, &peer).await?;
        let login = Login { endpoint: account, peer: peer.clone(), secure: true };
        login.answer(&mut packets, &greeting, caps).await?;
        login.finish(&mut packets, &greeting).await?;
        Ok((packets, greeting))
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, login).await {
        Ok(result) => result,
        Err(_) => Err(Error::unavailable(format!("log in to {peer}: no answer in time"))),
    }
}

/// Reads the greeting, and works out what to ask of that server.
async fn greeted<S>(packets: &mut Packets<S>, peer: &str) -> Result<(Greeting, Caps)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let first = receive(packets, peer).await?;
    if let Some(error) = ServerError::parse(&first) {
        return Err(error.for_operator(peer));
    }
    let greeting = Greeting::parse(&first)
        .ok_or_else(|| Error::unavailable(format!("{peer} is no MySQL server")))?;
    let needed = Caps::CLIENT_PROTOCOL_41 | Caps::CLIENT_PLUGIN_AUTH;
    if !greeting.capabilities.contains(needed) {
        return Err(Error::refused(format!(
            "{peer} is version {}, which is too old to talk to",
            greeting.server_version
        )));
    }
    let caps = needed
        | Caps::CLIENT_LONG_PASSWORD
        | Caps::CLIENT_TRANSACTIONS
        | Caps::CLIENT_SECURE_CONNECTION
        | (greeting.capabilities & Caps::CLIENT_CONNECT_ATTRS);
    Ok((greeting, caps))
}

async fn handshake(endpoint: &Endpoint) -> Result<(Packets<Stream>, Greeting)> {
    let peer = endpoint.to_string();
    let mut tcp = PacketCodec::new(ANSWER_LIMIT).framed(tls::connect_tcp(endpoint).await?);
    let (greeting, mut caps) = greeted(&mut tcp, &peer).await?;
    let secure = endpoint.tls.mode != TlsMode::Off;
    let mut packets = if secure {
        if !greeting.capabilities.contains(Caps::CLIENT_SSL) {
            return Err(no_tls(&peer));
        }
        caps |= Caps::CLIENT_SSL;
        send(&mut tcp, &login_head(caps), &peer).await?;
        let parts = tcp.into_parts();
        if !parts.read_buf.is_empty() {
            return Err(Error::corrupt(format!("{peer} sent something before TLS began")));
        }
        rewrap(parts.codec, tls::upgrade(parts.io, endpoint).await?)
    } else {
        let parts = tcp.into_parts();
        rewrap(parts.codec, Box::new(parts.io) as Stream)
    };
    let login = Login { endpoint, peer, secure };
    login.answer(&mut packets, &greeting, caps).await?;
    login.finish(&mut packets, &greeting).await?;
    Ok((packets, greeting))
}

fn rewrap(codec: PacketCodec, io: Stream) -> Packets<Stream> {
    Packets::from_parts(FramedParts::new::<&[u8]>(io, codec))
}

/// The part of a login that is also the request for TLS (`SSLRequest`).
fn login_head(caps: Caps) -> Vec<u8> {
    let mut to = caps.bits().to_le_bytes().to_vec();
    to.extend_from_slice(&MAX_PACKET.to_le_bytes());
    to.push(COLLATION);
    to.extend_from_slice(&[0; 23]);
    to
}

/// One login as a client.
struct Login<'a> {
    endpoint: &'a Endpoint,
    peer: String,
    secure: bool,
}

impl Login<'_> {
    /// Sends user and scramble (`HandshakeResponse41`).
    async fn answer(
        &self,
        packets: &mut Packets<Stream>,
        greeting: &Greeting,
        caps: Caps,
    ) -> Result<()> {
        let plugin = greeting.first_plugin();
        let scramble = self.prove(plugin, &greeting.nonce)?;
        let mut to = login_head(caps);
        to.extend_from_slice(self.endpoint.user.as_bytes());
        to.push(0);
        to.push(scramble.len() as u8);
        to.extend_from_slice(&scramble);
        to.extend_from_slice(plugin.name());
        to.push(0);
        if caps.contains(Caps::CLIENT_CONNECT_ATTRS) {
            let mut attributes = vec![];
            for word in ["program_name", "pitr", "program_version", env!("CARGO_PKG_VERSION")] {
                put_lenenc(&mut attributes, word.len() as u64);
                attributes.extend_from_slice(word.as_bytes());
            }
            put_lenenc(&mut to, attributes.len() as u64);
            to.extend_from_slice(&attributes);
        }
        send(packets, &to, &self.peer).await
    }

    fn prove(&self, plugin: Plugin, nonce: &[u8]) -> Result<Vec<u8>> {
        plugin.answer(nonce, &self.endpoint.password).ok_or_else(|| self.odd())
    }

    fn odd(&self) -> Error {
        Error::corrupt(format!("{}: not an answer to a login", self.peer))
    }

    /// Answers what the server asks for, until it says yes or no.
    async fn finish(&self, packets: &mut Packets<Stream>, greeting: &Greeting) -> Result<()> {
        let mut nonce = greeting.nonce.to_vec();
        let mut plugin = greeting.first_plugin();
        loop {
            let packet = receive(packets, &self.peer).await?;
            match (plugin, packet.split_first().ok_or_else(|| self.odd())?) {
                (_, (0x00, _)) => return Ok(()),
                (_, (0xff, _)) => {
                    let error = ServerError::parse(&packet).ok_or_else(|| self.odd())?;
                    return Err(error.at_login(self.endpoint));
                }
                (_, (0xfe, [])) => return Err(unknown_plugin(&self.peer, "mysql_old_password")),
                (_, (0xfe, request)) => {
                    let mut at = Reader(request);
                    let name = at.until_nul().ok_or_else(|| self.odd())?;
                    plugin = Plugin::named(name).ok_or_else(|| {
                        unknown_plugin(&self.peer, &String::from_utf8_lossy(name))
                    })?;
                    nonce = at.0.to_vec();
                    let scramble = self.prove(plugin, &nonce)?;
                    send(packets, &scramble, &self.peer).await?;
                }
                (Plugin::CachingSha2, (0x01, [0x03])) => {}
                (Plugin::CachingSha2, (0x01, [0x04])) => {
                    self.send_password(packets, &nonce).await?;
                }
                (Plugin::Parsec, (mark, rest)) => {
                    // The first versions of the plugin sent the salt without the 0x01 before it.
                    let salt = if *mark == 0x01 { rest } else { &*packet };
                    let answer = answer_salt(&nonce, salt, &self.endpoint.password);
                    send(packets, &answer.ok_or_else(|| self.odd())?, &self.peer).await?;
                }
                _ => return Err(self.odd()),
            }
        }
    }

    /// The full path of `caching_sha2_password`: the server has to see the password once.
    async fn send_password(&self, packets: &mut Packets<Stream>, nonce: &[u8]) -> Result<()> {
        let mut password = self.endpoint.password.reveal().as_bytes().to_vec();
        password.push(0);
        if self.secure {
            return send(packets, &password, &self.peer).await;
        }
        send(packets, &[0x02], &self.peer).await?;
        let answer = receive(packets, &self.peer).await?;
        if let Some(error) = ServerError::parse(&answer) {
            return Err(error.at_login(self.endpoint));
        }
        let key = match answer.split_first() {
            Some((0x01, key)) => key.to_vec(),
            _ => return Err(Error::corrupt(format!("{}: not a public key", self.peer))),
        };
        for (byte, mask) in password.iter_mut().zip(nonce.iter().take(NONCE_BYTES).cycle()) {
            *byte ^= mask;
        }
        // The library may panic at a key that is none, so it gets a task of its own.
        let encrypt = move || mysql_common::crypto::encrypt(&password, &key);
        let encrypted = tokio::task::spawn_blocking(encrypt)
            .await
            .map_err(|_| Error::corrupt(format!("{}: not a public key", self.peer)))?;
        send(packets, &encrypted, &self.peer).await
    }
}

/// What a server says when all is well: no rows, autocommit.
pub(crate) const OK_PACKET: [u8; 7] = [0, 0, 0, 2, 0, 0, 0];

/// Greets a client and lets it in if it knows `user` and `password`, else tells it so.
///
/// # Errors
/// Refused, if it does not know them. Unavailable, if the connection fails.
pub(crate) async fn accept<S>(
    packets: &mut Packets<S>,
    greeting: &Greeting,
    user: &str,
    password: &Secret,
    peer: &str,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let conversation = accept_within(packets, greeting, user, password, peer);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, conversation).await {
        Ok(result) => result,
        Err(_) => Err(Error::unavailable(format!("{peer} did not log in in time"))),
    }
}

async fn accept_within<S>(
    packets: &mut Packets<S>,
    greeting: &Greeting,
    user: &str,
    password: &Secret,
    peer: &str,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    send(packets, &greeting.encode(), peer).await?;
    let packet = receive(packets, peer).await?;
    let answer = Answer::parse(&packet)
        .ok_or_else(|| Error::corrupt(format!("{peer}: not an answer to a greeting")))?;
    let plugin = Plugin::named(&greeting.plugin)
        .ok_or_else(|| Error::bug("a greeting with an unknown plugin"))?;
    let scramble = if answer.plugin == greeting.plugin {
        answer.scramble.to_vec()
    } else {
        let mut switch = vec![0xfe];
        switch.extend_from_slice(plugin.name());
        switch.push(0);
        switch.extend_from_slice(&greeting.nonce);
        switch.push(0);
        send(packets, &switch, peer).await?;
        receive(packets, peer).await?.to_vec()
    };
    let expected = plugin.answer(&greeting.nonce, password).unwrap_or_default();
    if password.is_empty() || answer.user != user.as_bytes() || scramble != expected {
        let denied = ServerError { code: 1045, message: "Access denied".into() };
        send(packets, &denied.encode(), peer).await?;
        return Err(Error::refused(format!("{peer} does not know the password")));
    }
    if plugin == Plugin::CachingSha2 {
        send(packets, &[0x01, 0x03], peer).await?;
    }
    send(packets, &OK_PACKET, peer).await
}

/// The client's answer to a greeting (`HandshakeResponse41`).
struct Answer<'a> {
    user: &'a [u8],
    scramble: &'a [u8],
    plugin: &'a [u8],
}

impl<'a> Answer<'a> {
    fn parse(packet: &'a [u8]) -> Option<Self> {
        let mut at = Reader(packet);
        let caps = Caps::from_bits_truncate(at.u32()?);
        let _packet_collation_reserved = at.bytes(4 + 1 + 23)?;
        let user = at.until_nul()?;
        let len = if caps.contains(Caps::CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA) {
            usize::try_from(at.lenenc()?).ok()?
        } else {
            usize::from(at.u8()?)
        };
        let scramble = at.bytes(len)?;
        if caps.contains(Caps::CLIENT_CONNECT_WITH_DB) {
            at.until_nul()?;
        }
        let mut plugin = Plugin::Native.name();
        if caps.contains(Caps::CLIENT_PLUGIN_AUTH) {
            plugin = at.0.split(|&b| b == 0).next().unwrap_or_default();
        }
        Some(Self { user, scramble, plugin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::TlsOptions;
    use proptest::prelude::*;
    use rstest::rstest;
    use tokio::net::TcpListener;

    fn endpoint(port: u16, password: &str) -> Endpoint {
        Endpoint {
            host: "127.0.0.1".into(),
            port,
            user: "pitr".into(),
            password: Secret::new(password),
            tls: TlsOptions::default(),
        }
    }

    /// Logs in to our own server side. `first` is the plugin that the greeting announces while
    /// the account has `plugin`.
    async fn try_login(plugin: Plugin, password: &str) -> (Result<()>, Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut packets = PacketCodec::new(1000).framed(tcp);
            let greeting = Greeting::new("9.7.4", 8, plugin);
            accept(&mut packets, &greeting, "pitr", &Secret::new("right"), "replica").await
        };
        let at = endpoint(port, password);
        let client = async { connect(&at).await.map(drop) };
        tokio::join!(server, client)
    }

    #[rstest]
    #[case(Plugin::CachingSha2)]
    #[case(Plugin::Native)]
    #[tokio::test]
    async fn who_knows_the_password_is_let_in_and_nobody_else(#[case] plugin: Plugin) {
        let (server, client) = try_login(plugin, "right").await;
        server.unwrap();
        client.unwrap();
        for wrong in ["wrong", ""] {
            let (server, client) = try_login(plugin, wrong).await;
            assert_eq!(server.unwrap_err().class(), Class::Refused);
            let error = client.unwrap_err();
            assert_eq!(error.class(), Class::Usage);
            assert!(error.to_string().contains("pitr@127.0.0.1"), "{error}");
            assert!(!error.to_string().contains("wrong"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_is_unavailable() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = endpoint(listener.local_addr().unwrap().port(), "x");
        let server = async { drop(listener.accept().await.unwrap()) };
        let ((), client) = tokio::join!(server, connect(&at));
        assert_eq!(client.map(drop).unwrap_err().class(), Class::Unavailable);
    }

    #[test]
    fn a_greeting_is_read_back() {
        let greeting = Greeting::new("9.7.4-log", 77, Plugin::CachingSha2);
        assert_eq!(Greeting::parse(&greeting.encode()), Some(greeting));
    }

    #[rstest]
    #[case(b"\xff\x10\x04Too many connections", 1040, "Too many connections")]
    #[case(b"\xff\x15\x04#28000Access denied", 1045, "Access denied")]
    #[case(b"\xff\x15\x04#", 1045, "#")]
    fn errors_are_read_with_and_without_a_state(
        #[case] packet: &[u8],
        #[case] code: u16,
        #[case] message: &str,
    ) {
        let error = ServerError::parse(packet).unwrap();
        assert_eq!((error.code, error.message.as_str()), (code, message));
    }

    proptest! {
        #[test]
        fn arbitrary_packets_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Greeting::parse(&bytes));
            assert!(bytes.len() > 30 || Answer::parse(&bytes).is_none());
            drop(ServerError::parse(&bytes));
        }
    }
}
