//! Being let in: encryption, certificates and ways to prove a password, over both kinds of
//! connections that pitr makes (SQL, and the one that the log comes over).

use crate::instants::until_windows;
use crate::support::{Mariadbd, Mysqld, Pitr, eventually};
use pitr::engine::{Endpoint, Secret, TlsMode, TlsOptions, mysql};
use pitr::error::{Class, Error};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rstest::rstest;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// A password that stands in no text by chance.
const PASSWORD: &str = "kä\"se-7'\\x #1";

/// A folder with a certificate authority of its own.
struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("authority {:x}", rand::random::<u64>());
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::Builder::new().prefix("pitr-tls-").tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Writes `WHO.pem` and `WHO.key` for these names; valid from 2020 to `until`.
    fn issue(&self, who: &str, names: &[&str], until: i32) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, who);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{who}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{who}.key")), key.serialize_pem()).unwrap();
    }

    /// Options of a server whose certificate is `server.pem`.
    fn server_args(&self) -> [String; 3] {
        let arg = |name: &str, file: &str| format!("--ssl-{name}={}", self.path(file).display());
        [arg("ca", "ca.pem"), arg("cert", "server.pem"), arg("key", "server.key")]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mysql,
    Mariadb,
}

impl Kind {
    async fn start(self, args: &[String]) -> Mysqld {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        match self {
            Self::Mysql => Mysqld::start(&args).await,
            Self::Mariadb => Mariadbd::start(&args).await,
        }
    }

    /// Has the server read its certificate again.
    async fn reload(self, server: &Mysqld) {
        server
            .sql(if self == Self::Mysql { "ALTER INSTANCE RELOAD TLS" } else { "FLUSH SSL" })
            .await;
    }
}

fn endpoint(server: &Mysqld, user: &str, tls: TlsOptions) -> Endpoint {
    Endpoint {
        host: "127.0.0.1".into(),
        port: server.port(),
        user: user.into(),
        password: Secret::new(PASSWORD),
        tls,
    }
}

fn off() -> TlsOptions {
    TlsOptions::default()
}

fn require() -> TlsOptions {
    TlsOptions { mode: TlsMode::Require, ..off() }
}

fn verify(ca: &Path) -> TlsOptions {
    TlsOptions { mode: TlsMode::Verify, ca: Some(ca.to_owned()), ..off() }
}

async fn let_in(at: &Endpoint) {
    let (sql, replica) = mysql::knock(at).await;
    sql.unwrap_or_else(|error| panic!("{at} over SQL: {error}, with {:?}", at.tls));
    replica.unwrap_or_else(|error| panic!("{at} as a replica: {error}, with {:?}", at.tls));
}

/// Both are refused in the same words, with a hint and without the password. Gives both texts.
async fn refused(at: &Endpoint) -> String {
    let (sql, replica) = mysql::knock(at).await;
    let (sql, replica) = (sql.unwrap_err(), replica.unwrap_err());
    let words = |error: &Error| format!("{error}\n{}", error.hint_text().unwrap_or("no hint"));
    // The source's port, which the server may name, is another one each time.
    assert_eq!(words(&sql), words(&replica));
    assert_eq!((sql.class(), replica.class()), (Class::Usage, Class::Usage), "{sql}");
    assert!(sql.hint_text().is_some(), "{sql}");
    for text in [format!("{sql:?}"), format!("{replica:?}"), words(&sql)] {
        assert!(!text.contains(PASSWORD) && !text.contains("kä"), "{text}");
    }
    words(&sql)
}

#[rstest]
#[case(Kind::Mysql)]
#[case(Kind::Mariadb)]
#[tokio::test]
async fn a_certificate_counts_if_it_is_valid_and_trusted_and_for_the_host(#[case] kind: Kind) {
    let (ours, other) = (Authority::new(), Authority::new());
    ours.issue("server", &["127.0.0.1", "localhost"], 2090);
    ours.issue("client", &["pitr"], 2090);
    other.issue("client", &["pitr"], 2090);
    let mut server = kind.start(&ours.server_args()).await;
    for (user, demand) in [("free", "NONE"), ("tls", "SSL"), ("cert", "X509")] {
        let password = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
        server
            .sql(&format!("CREATE USER {user} IDENTIFIED BY '{password}' REQUIRE {demand}"))
            .await;
    }
    let good = verify(&ours.path("ca.pem"));
    let with = |authority: &Authority| TlsOptions {
        cert: Some(authority.path("client.pem")),
        key: Some(authority.path("client.key")),
        ..good.clone()
    };

    for tls in [off(), require(), good.clone(), with(&ours)] {
        let_in(&endpoint(&server, "free", tls)).await;
    }
    for tls in [require(), good.clone(), with(&ours)] {
        let_in(&endpoint(&server, "tls", tls)).await;
    }
    let_in(&endpoint(&server, "cert", with(&ours))).await;

    let said = refused(&endpoint(&server, "tls", off())).await;
    assert!(said.contains("REQUIRE SSL") && said.contains("tls = {"), "{said}");
    let said = refused(&endpoint(&server, "cert", good.clone())).await;
    assert!(said.contains("REQUIRE X509") && said.contains("tls.cert"), "{said}");
    let said = refused(&endpoint(&server, "cert", with(&other))).await;
    assert!(said.contains("tls.cert") && said.contains("UnknownCA"), "{said}");
    let said = refused(&endpoint(&server, "free", verify(&other.path("ca.pem")))).await;
    assert!(said.contains("not signed by an authority") && said.contains("tls.ca"), "{said}");
    let public = TlsOptions { ca: None, ..good.clone() };
    let said = refused(&endpoint(&server, "free", public)).await;
    assert!(said.contains("not signed by an authority"), "{said}");
    let by_name = Endpoint { host: "localhost".into(), ..endpoint(&server, "free", good.clone()) };
    let_in(&by_name).await;

    ours.issue("server", &["db.example"], 2090);
    kind.reload(&server).await;
    let said = refused(&by_name).await;
    assert!(said.contains("for another name") && said.contains("db.example"), "{said}");
    let_in(&endpoint(&server, "free", require())).await;

    // MySQL reads an expired one only when it starts.
    ours.issue("server", &["127.0.0.1"], 2021);
    server.restart().await;
    let said = refused(&endpoint(&server, "free", good.clone())).await;
    assert!(said.contains("expired"), "{said}");

    let missing = verify(Path::new("/nowhere/ca.pem"));
    let said = refused_locally(&endpoint(&server, "free", missing)).await;
    assert!(said.contains("/nowhere/ca.pem"), "{said}");
    std::fs::write(ours.path("client.key"), "not a key").unwrap();
    let said = refused_locally(&endpoint(&server, "free", with(&ours))).await;
    assert!(said.contains("client.key"), "{said}");
}

/// As [`refused`], where the fault is here, so that the cause is the better hint.
async fn refused_locally(at: &Endpoint) -> String {
    let (sql, replica) = mysql::knock(at).await;
    let (sql, replica) = (sql.unwrap_err(), replica.unwrap_err());
    assert_eq!(sql.to_string(), replica.to_string());
    assert_eq!((sql.class(), replica.class()), (Class::Usage, Class::Usage), "{sql}");
    sql.to_string()
}

#[tokio::test]
async fn passwords_are_proved_to_mysql_in_each_way_that_pitr_knows() {
    let server = Mysqld::start(&[]).await;
    let password = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    for (user, plugin) in [("sha2", "caching_sha2_password"), ("old", "sha256_password")] {
        let create = format!("CREATE USER {user} IDENTIFIED WITH {plugin} BY '{password}'");
        server.sql(&create).await;
    }
    server.sql("CREATE USER nobody").await;
    for tls in [off(), require()] {
        let at = endpoint(&server, "sha2", tls.clone());
        for _ in 0..2 {
            // The server forgets whom it knows: the password is proved in full, then by a scramble.
            server.sql("FLUSH PRIVILEGES").await;
            let_in(&at).await;
            let_in(&at).await;
        }
        let_in(&Endpoint { password: Secret::default(), ..endpoint(&server, "nobody", tls) }).await;
        for wrong in ["", "wrong"] {
            let said = refused(&Endpoint { password: Secret::new(wrong), ..at.clone() }).await;
            assert!(said.contains("Access denied for user 'sha2'"), "{said}");
        }
    }
    let said = refused(&endpoint(&server, "old", require())).await;
    assert!(said.contains("sha256_password") && said.contains("IDENTIFIED WITH"), "{said}");
    server.sql("SET GLOBAL require_secure_transport = ON").await;
    let said = refused(&endpoint(&server, "sha2", off())).await;
    assert!(said.contains("set `tls = {"), "{said}");
}

#[rstest]
#[case::of_11_8("11.8")]
// It has no parsec yet, and makes no certificate for itself.
#[case::of_10_5("10.5")]
#[tokio::test]
async fn passwords_are_proved_to_mariadb_in_each_way_that_pitr_knows(#[case] series: &str) {
    let plugins = ["--plugin-load-add=auth_ed25519", "--plugin-load-add=auth_parsec"];
    let ours = Authority::new();
    ours.issue("server", &["127.0.0.1"], 2090);
    let server = match series {
        "10.5" => {
            let [ca, cert, key] = ours.server_args();
            Mariadbd::start_10_5(&[plugins[0], &ca, &cert, &key]).await
        }
        _ => Mariadbd::start_11_8(&plugins).await,
    };
    let has_parsec = series != "10.5";
    let known = ["mysql_native_password", "ed25519", "parsec"];
    let password = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    for plugin in known.into_iter().filter(|plugin| has_parsec || *plugin != "parsec") {
        let create =
            format!("CREATE USER {plugin} IDENTIFIED VIA {plugin} USING PASSWORD('{password}')");
        server.sql(&create).await;
        for tls in [off(), require()] {
            let at = endpoint(&server, plugin, tls);
            let_in(&at).await;
            let said = refused(&Endpoint { password: Secret::new("wrong"), ..at }).await;
            assert!(said.contains("Access denied for user"), "{said}");
        }
    }
    // At an empty password for parsec, the library for ordinary connections panics.
    for account in ["parsec", "empty"].into_iter().filter(|_| has_parsec) {
        if account == "empty" {
            server.sql("CREATE USER empty IDENTIFIED VIA parsec USING PASSWORD('')").await;
        }
        let at = Endpoint { password: Secret::new(""), ..endpoint(&server, account, off()) };
        let error = mysql::connect(&at).await.unwrap_err();
        assert_eq!(error.class().exit_code(), 2, "{error:?}");
        assert!(error.to_string().contains("none is given"), "{error}");
        assert!(error.hint_text().unwrap().contains("password_file"), "{error:?}");
    }
    server.sql("SET GLOBAL require_secure_transport = ON").await;
    let said = refused(&endpoint(&server, "ed25519", off())).await;
    // 10.5 says only that it does not let in; the hint has it among other things.
    assert!(said.contains(if has_parsec { "set `tls = {" } else { "needs `tls = {" }), "{said}");
}

/// Looks at the arguments of all processes until it is told to stop. Gives what it saw of
/// `mysqldump`, so that it is known to have looked in time, and panics at the secret.
fn watch_arguments(secret: &'static str, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u32> {
    std::thread::spawn(move || {
        let dumps = AtomicU32::new(0);
        while !stop.load(Ordering::Relaxed) {
            for process in std::fs::read_dir("/proc").unwrap() {
                // Processes come and go while they are looked at.
                let file = process.unwrap().path().join("cmdline");
                let arguments = std::fs::read(file).unwrap_or_default();
                let arguments = String::from_utf8_lossy(&arguments);
                assert!(!arguments.contains(secret), "{arguments:?}");
                dumps.fetch_add(
                    u32::from(arguments.contains("--set-gtid-purged")),
                    Ordering::Relaxed,
                );
            }
        }
        dumps.into_inner()
    })
}

#[tokio::test]
async fn a_password_shows_nowhere_and_certificates_serve_the_whole_program() {
    const SECRET: &str = "Kellerasseln-7f3a";
    let ours = Authority::new();
    ours.issue("server", &["127.0.0.1"], 2090);
    ours.issue("client", &["pitr"], 2090);
    let source = Kind::Mysql.start(&ours.server_args()).await;
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (n INT PRIMARY KEY)").await;
    source.sql("INSERT INTO shop.t VALUES (1)").await;
    let create = format!("CREATE USER pitr IDENTIFIED BY '{SECRET}' REQUIRE X509");
    source.sql(&format!("{create}; GRANT ALL ON *.* TO pitr")).await;
    let url = format!("mysql://pitr:{SECRET}@127.0.0.1:{}", source.port());
    let pitr = Pitr::new(&[("shop", url)]);
    let file = |name: &str| ours.path(name).display().to_string();
    pitr.append_config(&format!(
        "tls = {{ mode = \"verify\", ca = {:?}, cert = {:?}, key = {:?} }}",
        file("ca.pem"),
        file("client.pem"),
        file("client.key")
    ));
    let said = pitr.run(&["init"]).await.exits(2).stderr;
    assert!(said.contains("can be read by others") && !said.contains(SECRET), "{said}");
    let closed = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(pitr.config_path(), closed).unwrap();
    pitr.run(&["init"]).await.ok();

    let stop = Arc::new(AtomicBool::new(false));
    let watching = watch_arguments(SECRET, Arc::clone(&stop));
    let mut daemon = pitr.spawn_run_with(&[("PITR_LOG", "trace")]);
    until_windows(&pitr, &mut daemon).await;
    let mut said = pitr.run(&["baseline", "--json"]).await.ok();
    source.sql("ALTER USER pitr IDENTIFIED BY 'another'").await;
    let kill = "SELECT GROUP_CONCAT(CONCAT('KILL ', id) SEPARATOR ';') \
                FROM information_schema.processlist WHERE user = 'pitr'";
    source.sql(&source.row::<String>(kill).await).await;
    let report = eventually("the refusal shows", Duration::from_secs(30), async || {
        let report = pitr.run(&["windows", "--json"]).await.ok();
        report.stdout.contains("Access denied").then_some(report)
    })
    .await;
    daemon.terminate(Duration::from_secs(10)).await;
    let alone = pitr.run(&["baseline", "--json"]).await.exits(2);
    assert!(alone.stderr.contains("Access denied"), "{}", alone.stderr);
    stop.store(true, Ordering::Relaxed);
    assert!(watching.join().unwrap() > 0, "mysqldump was not seen");
    for output in [report, alone] {
        said.stdout += &output.stdout;
        said.stderr += &output.stderr;
    }
    for text in [said.stdout, said.stderr, daemon.log()] {
        assert!(!text.contains(SECRET) && text.len() > 1, "{text}");
    }
    // All that was stored, as it is and unpacked; the configuration lies beside the archive.
    let search = format!(
        "grep -rlaF {SECRET} . ; find . -name '*.zst' | xargs zstd -dc | grep -aF {SECRET}"
    );
    let found = Command::new("sh").args(["-c", &search]).current_dir(pitr.archive()).output();
    assert_eq!(String::from_utf8_lossy(&found.unwrap().stdout), "");
}

/// What docs/ACCOUNTS.md grants for capture and baselines.
const PRIVILEGES: [&str; 8] = [
    "REPLICATION SLAVE",
    "REPLICATION CLIENT",
    "SELECT",
    "RELOAD",
    "LOCK TABLES",
    "SHOW VIEW",
    "EVENT",
    "TRIGGER",
];

#[tokio::test]
async fn a_missing_privilege_is_named_and_with_all_of_them_everything_works() {
    let source = Mysqld::start(&[]).await;
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (n INT PRIMARY KEY)").await;
    source.sql("CREATE VIEW shop.v AS SELECT n FROM shop.t").await;
    source
        .sql("CREATE TRIGGER shop.g BEFORE INSERT ON shop.t FOR EACH ROW SET NEW.n = NEW.n")
        .await;
    source.sql("CREATE EVENT shop.e ON SCHEDULE EVERY 1 DAY DO DELETE FROM shop.t").await;
    let all = PRIVILEGES.join(", ");
    source.sql(&format!("CREATE USER pitr; GRANT {all} ON *.* TO pitr")).await;
    let url = format!("mysql://pitr@127.0.0.1:{}", source.port());
    let pitr = Pitr::new(&[("shop", url)]);
    pitr.run(&["init"]).await.ok();
    for privilege in PRIVILEGES {
        source.sql(&format!("REVOKE {privilege} ON *.* FROM pitr")).await;
        let failed = pitr.run(&["baseline"]).await.exits(2);
        let said = failed.stderr;
        assert!(said.contains(&format!("it lacks {privilege}\n")), "{privilege}: {said}");
        assert!(said.contains(&format!("hint: GRANT {privilege} ON *.* TO `pitr`@`%`")), "{said}");
        source.sql(&format!("GRANT {privilege} ON *.* TO pitr")).await;
    }
    pitr.run(&["baseline"]).await.ok();
    // The same through a role.
    source
        .sql(&format!("REVOKE ALL ON *.* FROM pitr; CREATE ROLE r; GRANT {all} ON *.* TO r"))
        .await;
    source.sql("GRANT r TO pitr").await;
    pitr.run(&["baseline"]).await.exits(2);
    source.sql("SET DEFAULT ROLE r TO pitr").await;
    pitr.run(&["baseline"]).await.ok();
}
