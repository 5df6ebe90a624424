//! The command line as an operator meets it: help, errors with their hints, exit codes.
//!
//! No servers: sources point at a port on which nothing listens. What commands do to servers is
//! shown elsewhere.

use crate::support::{Output, Pitr, eventually};
use insta::assert_snapshot;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// A folder whose two sources cannot be reached.
fn pitr() -> Pitr {
    // Port 9 (discard): nothing listens there.
    let pitr = Pitr::new(&[
        ("shop-mysql", "mysql://root@127.0.0.1:9".into()),
        ("shop-redis", "redis://127.0.0.1:9".into()),
    ]);
    // Civil times in what is printed must not depend on the machine.
    pitr.write_config(&format!("tz = \"UTC\"\n\n{}", pitr.config()));
    pitr
}

/// Exit code and both outputs, with the temporary folder's name taken out.
fn shown(pitr: &Pitr, output: &Output) -> String {
    let text = format!(
        "$ {}\nexit {}\n--- stdout\n{}--- stderr\n{}",
        output.command,
        output.code().unwrap_or(-1),
        output.stdout,
        output.stderr
    );
    text.replace(&pitr.dir().display().to_string(), "[DIR]")
}

/// Runs commands one after the other, and shows all of them.
async fn session(pitr: &Pitr, commands: &[&[&str]]) -> String {
    let mut text = vec![];
    for args in commands {
        text.push(shown(pitr, &pitr.run(args).await));
    }
    text.join("\n")
}

#[tokio::test]
async fn every_command_has_help_with_its_options() {
    let pitr = pitr();
    let whole = pitr.run(&["--help"]).await.ok().stdout;
    let commands: Vec<&str> = whole
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.contains(&"restore"), "{whole}");
    assert_snapshot!("help", whole);
    for command in commands {
        let help = pitr.run(&[command, "--help"]).await.ok().stdout;
        assert_snapshot!(format!("help_{command}"), help);
    }
}

#[tokio::test]
async fn what_is_typed_wrong_is_named_with_what_helps() {
    let pitr = pitr();
    pitr.run(&["init"]).await.ok();
    let text = session(
        &pitr,
        &[
            &["restore"],
            &["restor", "--to", "latest"],
            &["restore", "--to", "yesterday"],
            &["restore", "--to", "2024-10-27T02:30", "--tz", "Europe/Paris"],
            &["restore", "--to", "2024-03-31T02:30", "--tz", "Europe/Paris"],
            &["restore", "--to", "2024-05-01T03:00", "--tz", "Europe/Pari"],
            &["restore", "--to", "latest", "--source", "shop-mysq"],
            &["restore", "--to", "latest", "--target", "shop-mysql"],
            &["restore", "--to", "latest", "--target", "shop-mysql=redis://127.0.0.1:9"],
            &["windows", "-c", "no-such.toml"],
            &["--json", "restore"],
            &["--json", "windws"],
        ],
    )
    .await;
    assert_snapshot!("typed_wrong", text);
}

#[tokio::test]
async fn what_is_configured_wrong_is_named_with_what_helps() {
    let pitr = pitr();
    let good = pitr.config();
    let source = "[[source]]\nname = \"a\"\nengine = \"redis\"\nurl = \"redis://127.0.0.1:9\"\n";
    let archive = "[archive]\ndir = \"archive\"\n";
    let cases = [
        ("a misspelt key", good.replacen("name =", "nmae =", 1)),
        ("a misspelt table", good.replacen("[archive]", "[archiv]", 1)),
        ("a misspelt engine", good.replacen("\"mysql\"", "\"mysq\"", 1)),
        ("no toml", good.replacen("[archive]", "[archive", 1)),
        ("a number in place of a text", good.replacen("\"shop-mysql\"", "7", 1)),
        ("a name twice", format!("{archive}{source}{source}")),
        ("a name that is a path", format!("{archive}{source}").replace("\"a\"", "\"../a\"")),
        ("the url of another engine", good.replacen("mysql://", "redis://", 1)),
        ("no source", archive.to_owned()),
        ("no archive", source.to_owned()),
        ("an unknown zone", good.replacen("UTC", "Europe/Pari", 1)),
        ("no such password file", format!("{good}password_file = \"no-such-file\"\n")),
        ("a time that is none", format!("{good}[baseline]\nat = \"25:00\"\n")),
        ("a length of zero", format!("{good}[segment]\nmax_bytes = 0\n")),
    ];
    let mut text = vec![];
    for (what, config) in cases {
        pitr.write_config(&config);
        text.push(format!("# {what}\n{}", shown(&pitr, &pitr.run(&["windows"]).await)));
    }
    assert_snapshot!("configured_wrong", text.join("\n"));
}

#[tokio::test]
async fn commands_in_the_wrong_order_say_which_comes_first() {
    let pitr = pitr();
    let text = session(
        &pitr,
        &[
            &["windows"],
            &["run"],
            &["restore", "--to", "latest"],
            &["reindex"],
            &["init"],
            &["init"],
            &["windows"],
            &["baseline", "--source", "shop-redis"],
            &["restore", "--to", "latest"],
            &["restore", "--to", "2024-05-01T03:00:00Z"],
            &["--json", "restore", "--to", "2024-05-01T03:00:00Z"],
            &["reindex"],
        ],
    )
    .await;
    assert_snapshot!("wrong_order", text);
    let error = pitr.run(&["restore", "--to", "2024-05-01T03:00:00Z", "--json"]).await.exits(4);
    let document = error.error_json();
    assert_eq!(document["schema"], "pitr.error/1");
    assert_eq!((&document["class"], &document["exit"]), (&"gap".into(), &4.into()));
}

#[tokio::test]
async fn doctor_shows_each_finding_with_its_reason_and_what_mends_it() {
    let pitr = pitr();
    let before = session(&pitr, &[&["doctor"]]).await;
    pitr.run(&["init"]).await.ok();
    let after = session(&pitr, &[&["doctor", "--source", "shop-redis"]]).await;
    // What depends on the machine and the moment.
    let fixed = |line: &str| match line.split_once(": ") {
        Some((check, _)) if check.ends_with(" archive") && line.contains(", made ") => {
            format!("{check}: […]\n")
        }
        Some((check, _)) if check.ends_with(" space") => format!("{check}: […]\n"),
        _ => format!("{line}\n"),
    };
    let text: String = format!("{before}\n{after}").lines().map(fixed).collect();
    assert_snapshot!("doctor", text);
}

#[tokio::test]
async fn an_instant_in_the_future_is_refused_as_not_restorable() {
    let pitr = pitr();
    pitr.run(&["init"]).await.ok();
    let error = pitr.run(&["restore", "--to", "2999-01-01T00:00:00Z"]).await.exits(4);
    assert!(error.stderr.contains("2999-01-01T00:00:00.000000Z is in the future"), "{error:?}");
    assert!(error.stderr.contains("hint: "), "{error:?}");
}

#[tokio::test]
async fn a_password_is_in_no_output_and_only_in_files_of_its_owner() {
    let pitr = pitr();
    pitr.write_config(&pitr.config().replace("root@", "root:geheim@"));
    let permit = |mode| {
        std::fs::set_permissions(pitr.config_path(), PermissionsExt::from_mode(mode)).unwrap();
    };
    permit(0o644);
    let refused = pitr.run(&["init"]).await.exits(2);
    permit(0o600);
    let created = pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    eventually("the daemon has tried to connect", Duration::from_secs(30), async || {
        daemon.log().contains("127.0.0.1:9").then_some(())
    })
    .await;
    let windows = pitr.run(&["windows", "-vv"]).await.ok();
    let arguments = std::fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
    daemon.terminate(Duration::from_secs(5)).await;
    let everything = format!(
        "{refused:?}{created:?}{windows:?}{}{}",
        daemon.log(),
        String::from_utf8_lossy(&arguments)
    );
    assert!(!everything.contains("geheim"), "{everything}");
}

#[tokio::test]
async fn one_archive_has_one_daemon() {
    let pitr = pitr();
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    eventually("the daemon answers", Duration::from_secs(30), async || {
        let windows = pitr.run(&["windows", "--json"]).await.ok().json();
        (windows["sources"][0]["state"] != "stopped").then_some(())
    })
    .await;
    let second = pitr.run(&["run"]).await.exits(7);
    assert!(second.stderr.contains("hint: "), "{second:?}");
    // Unreachable sources do not keep it from stopping in time, nor make it fail.
    assert_eq!(daemon.terminate(Duration::from_secs(5)).await.code(), Some(0), "{}", daemon.log());
}

#[tokio::test]
async fn the_configuration_in_the_readme_works() {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let block: Vec<&str> = readme
        .lines()
        .skip_while(|line| *line != "    [archive]")
        .take_while(|line| line.is_empty() || line.starts_with("    "))
        .collect();
    let pitr = pitr();
    let password = pitr.dir().join("password");
    std::fs::write(&password, "geheim\n").unwrap();
    std::fs::set_permissions(&password, PermissionsExt::from_mode(0o600)).unwrap();
    let toml = block.join("\n");
    assert!(toml.contains("/var/lib/pitr") && toml.contains("/etc/pitr/shop-mysql.password"));
    let toml = toml
        .replace("/var/lib/pitr", pitr.archive().to_str().unwrap())
        .replace("/etc/pitr/shop-mysql.password", password.to_str().unwrap());
    pitr.write_config(&toml);
    pitr.run(&["init"]).await.ok();
    let windows = pitr.run(&["windows", "--json"]).await.ok().json();
    let names: Vec<_> = windows["sources"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
    assert_eq!(names, ["shop-mysql", "shop-redis"]);
}

#[tokio::test]
async fn packagers_get_completions_and_a_manual_page() {
    let pitr = pitr();
    for shell in ["bash", "zsh", "fish"] {
        let script = pitr.run(&["completions", shell]).await.ok().stdout;
        assert!(script.contains("restore") && script.contains("pitr"), "{shell}: {script}");
    }
    let page = pitr.run(&["man"]).await.ok().stdout;
    assert!(page.contains(".TH pitr 1"), "{page}");
}

#[tokio::test]
async fn holds_and_retention_work_with_and_without_a_daemon() {
    let pitr = pitr();
    pitr.run(&["init"]).await.ok();
    let text = session(
        &pitr,
        &[
            &["hold"],
            &["hold", "audit", "--from", "2024-05-01T00:00"],
            &["hold", "a/b", "--from", "2024-05-01T00:00", "--to", "2024-05-02T00:00"],
            &["hold", "audit", "--from", "2024-05-02T00:00", "--to", "2024-05-01T00:00"],
            &["hold", "audit", "--from", "2024-05-01T00:00", "--to", "2024-05-02T00:00"],
            &[
                "hold",
                "audit",
                "--source",
                "shop-redis",
                "--from",
                "2024-05-01T00:00",
                "--to",
                "latest",
            ],
            &["hold", "--list", "--source", "shop-redis"],
            &["hold", "--release", "audit"],
            &["hold", "--release", "audit"],
            &["prune", "--force"],
        ],
    )
    .await;
    assert_snapshot!("holds", text);
    let alone = pitr.run(&["prune", "--apply", "--json"]).await.ok().json();
    assert_eq!((&alone["schema"], &alone["applied"]), (&"pitr.prune/1".into(), &true.into()));
    let mut daemon = pitr.spawn_run();
    eventually("the daemon answers", Duration::from_secs(30), async || {
        let windows = pitr.run(&["windows", "--json"]).await.ok().json();
        (windows["sources"][0]["state"] != "stopped").then_some(())
    })
    .await;
    let through = pitr.run(&["prune", "--apply", "--json"]).await.ok().json();
    assert_eq!((&through["schema"], &through["applied"]), (&"pitr.prune/1".into(), &true.into()));
    assert_eq!(daemon.terminate(Duration::from_secs(5)).await.code(), Some(0), "{}", daemon.log());
}
