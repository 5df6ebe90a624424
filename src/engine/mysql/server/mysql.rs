//! What a scratch server of MySQL is called, given and told.

use super::Setup;
use tokio::process::Command;

/// The package that has the program.
pub(super) const PACKAGE: &str = "the MySQL server (mysql-server)";
/// Makes a directory safe again that was written to without a redo log.
pub(super) const REDO_ON: &str = "ALTER INSTANCE ENABLE INNODB REDO_LOG";

/// What makes a data directory.
pub(super) fn initializer(setup: &Setup) -> (String, Command) {
    let mut command = Command::new(&setup.program);
    command.args(["--no-defaults", "--initialize-insecure"]);
    (format!("{} --initialize-insecure", setup.program), command)
}

/// Options of a run that a MariaDB does not have.
pub(super) fn options(command: &mut Command, setup: &Setup) {
    command
        .args(["--mysqlx=OFF", "--log-replica-updates=OFF", "--skip-replica-start"])
        .args(if setup.anonymous {
            // It takes those with GTIDs, too.
            ["--gtid-mode=OFF_PERMISSIVE", "--enforce-gtid-consistency=OFF"]
        } else {
            ["--gtid-mode=ON", "--enforce-gtid-consistency=ON"]
        })
        .arg("--log-error-verbosity=2")
        // Ways to log in that accounts of the source may have and that servers do not load by
        // themselves: without them, such an account cannot be created.
        .args(["--loose-mysql-native-password=ON", "--plugin-load-add=auth_socket.so"]);
    if setup.partial_revokes {
        command.arg("--partial-revokes=ON");
    }
}

/// What else makes an account the administrator of a fresh server.
pub(super) fn admin(user: &str) -> Vec<String> {
    vec![
        format!("GRANT PROXY ON ''@'' TO '{user}'@'localhost' WITH GRANT OPTION"),
        "ALTER INSTANCE DISABLE INNODB REDO_LOG".into(),
        // The last: the rights of an open connection go with its account.
        "DROP USER root@localhost".into(),
    ]
}
