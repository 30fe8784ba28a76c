//! A hook before every file operation of this thread, so that tests can count, fail or watch them.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::path::Path;

type Hook<'a> = Box<dyn FnMut(&'static str, &Path) -> io::Result<()> + 'a>;

thread_local! {
    static HOOK: RefCell<Option<Hook<'static>>> = const { RefCell::new(None) };
}

/// Called before each operation with what it is and on which path; an error takes the operation's place.
pub(super) fn before(what: &'static str, path: &Path) -> io::Result<()> {
    // Taken out while it runs, so that the hook may use files itself.
    let Some(mut hook) = HOOK.take() else { return Ok(()) };
    let answer = hook(what, path);
    HOOK.set(Some(hook));
    answer
}

/// Runs `body` with `hook` before each of its file operations.
pub(crate) fn watch<T>(
    hook: impl FnMut(&'static str, &Path) -> io::Result<()> + 'static,
    body: impl FnOnce() -> T,
) -> T {
    struct Unhook;
    impl Drop for Unhook {
        fn drop(&mut self) {
            HOOK.set(None);
        }
    }
    let _unhook = Unhook;
    HOOK.set(Some(Box::new(hook)));
    body()
}

/// The number of file operations of `body`.
pub(crate) fn count(body: impl FnOnce()) -> usize {
    let operations = std::rc::Rc::new(Cell::new(0));
    let counter = operations.clone();
    watch(
        move |_, _| {
            counter.set(counter.get() + 1);
            Ok(())
        },
        body,
    );
    operations.get()
}

/// Operation `n` (from 0) fails; the others work. This is an error that the program can clean up after.
pub(crate) fn fail_once<T>(n: usize, kind: ErrorKind, body: impl FnOnce() -> T) -> T {
    let mut seen = 0;
    watch(
        move |_, _| {
            seen += 1;
            if seen == n + 1 { Err(kind.into()) } else { Ok(()) }
        },
        body,
    )
}

/// Operation `n` (from 0) and all after it fail, as when the process is killed there: nothing is cleaned up.
pub(crate) fn crash_at<T>(n: usize, body: impl FnOnce() -> T) -> T {
    let mut seen = 0;
    watch(
        move |_, _| {
            seen += 1;
            if seen > n { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
        },
        body,
    )
}
