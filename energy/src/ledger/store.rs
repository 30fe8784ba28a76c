//! The ledger's file: opening it, its version, and its errors in words that help.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::error::{Error, Result};

/// The ledger's name in a run directory.
pub const FILE_NAME: &str = "ledger.sqlite";

/// Marks the file as a ledger: "WTLE".
const APPLICATION_ID: i32 = 0x5754_4c45;

/// Version of the schema.
const VERSION: i32 = 2;

/// How long a writer waits for another to let go.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn open_for_writing(path: &Path) -> Result<Connection> {
    let mut connection = Connection::open(path).map_err(|error| failure(path, "open", &error))?;
    set_up(&mut connection).map_err(|error| failure(path, "open", &error))?;
    check_identity(&connection, path)?;
    Ok(connection)
}

/// Opens the ledger of a run directory, or a ledger file, without changing it.
pub(crate) fn open_for_reading(run_or_file: &Path) -> Result<(PathBuf, Connection)> {
    let path = if run_or_file.is_dir() { run_or_file.join(FILE_NAME) } else { run_or_file.to_owned() };
    if !path.is_file() {
        return Err(Error::Ledger {
            path,
            action: "read",
            reason: "no such file".into(),
            remedy: "give a run directory or its ledger.sqlite",
        });
    }
    let connection = open_read_only(&path).map_err(|error| failure(&path, "read", &error))?;
    check_identity(&connection, &path)?;
    Ok((path, connection))
}

fn open_read_only(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let Err(error) = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())) else {
        return Ok(connection);
    };
    // A finished ledger in a read-only directory: SQLite cannot place its index beside it, and needs none as long
    // as no log of an unfinished writer is there.
    let log = PathBuf::from(format!("{}-wal", path.display()));
    let no_place = matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly));
    if !no_place || log.exists() {
        return Err(error);
    }
    Connection::open_with_flags(format!("{}?immutable=1", uri(path)), flags)
}

/// A path as SQLite's URI, to which parameters can be added.
pub(super) fn uri(path: &Path) -> String {
    format!("file:{}", path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23"))
}

fn set_up(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        transaction.execute_batch(include_str!("schema.sql"))?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}

fn check_identity(connection: &Connection, path: &Path) -> Result<()> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let identity = pragma("application_id").and_then(|id| Ok((id, pragma("user_version")?)));
    let (reason, remedy) = match identity.map_err(|error| failure(path, "read", &error))? {
        (APPLICATION_ID, VERSION) => return Ok(()),
        (APPLICATION_ID, version) => (
            format!("it has schema version {version}, this program knows {VERSION}"),
            "use the version of the program that wrote it, or a newer one",
        ),
        _ => ("it is a database of another program".into(), "move it away, or choose another run directory"),
    };
    Err(Error::Ledger { path: path.to_owned(), action: "open", reason, remedy })
}

/// An error while reading, for the report.
pub(crate) fn read_failure(path: &Path, error: &rusqlite::Error) -> Error {
    failure(path, "read", error)
}

pub(super) fn failure(path: &Path, action: &'static str, error: &rusqlite::Error) -> Error {
    let remedy = match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen) => "check that the directory exists and may be written to",
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            "make the file and its directory writable, or choose another run directory"
        }
        Some(ErrorCode::DiskFull) => "free some space; what was committed before is safe",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another process writes this ledger: stop it, or choose another run directory"
        }
        Some(ErrorCode::NotADatabase) => "the file is no ledger: move it away",
        Some(ErrorCode::DatabaseCorrupt) => "recover it with `sqlite3 FILE .recover`, or move it away",
        _ => "check the disk",
    };
    Error::Ledger { path: path.to_owned(), action, reason: error.to_string(), remedy }
}
