//! The call `perf_event_open`, for an event that counts on one CPU whatever runs there.

use std::fs::File;
use std::io;

/// What to ask of the kernel: an event of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerfEvent {
    /// The device's number.
    pub kind: u32,
    /// The event's number.
    pub config: u64,
}

/// Opens `event` on `cpu` for all processes, closed when another program is executed.
#[cfg(target_os = "linux")]
pub(in crate::meter) fn open_event(event: &PerfEvent, cpu: u32) -> io::Result<File> {
    use std::os::fd::FromRawFd;

    /// `struct perf_event_attr` of its first version; everything that is 0 is a default.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        sample_period: u64,
        sample_type: u64,
        read_format: u64,
        flags: u64,
        wakeup_events: u32,
        breakpoint_type: u32,
        breakpoint_address: u64,
    }
    const EVERY_PROCESS: libc::pid_t = -1;
    const NO_GROUP: libc::c_int = -1;
    const CLOSE_ON_EXEC: libc::c_ulong = 8;

    let attributes = Attributes {
        kind: event.kind,
        size: size_of::<Attributes>() as u32,
        config: event.config,
        ..Attributes::default()
    };
    let cpu = libc::c_int::try_from(cpu).map_err(io::Error::other)?;
    // SAFETY: `attributes` is a perf_event_attr whose `size` is its own size, and the call only reads it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(&attributes),
            EVERY_PROCESS,
            cpu,
            NO_GROUP,
            CLOSE_ON_EXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone; descriptors fit a C int.
    Ok(unsafe { File::from_raw_fd(fd as libc::c_int) })
}

/// Other systems have no perf events.
#[cfg(not(target_os = "linux"))]
pub(in crate::meter) fn open_event(_: &PerfEvent, _: u32) -> io::Result<File> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn this_kernel_answers_the_call() {
        // The CPU clock of the software device is there wherever perf events are; sandboxes refuse it.
        const SOFTWARE_CPU_CLOCK: PerfEvent = PerfEvent { kind: 1, config: 0 };
        match open_event(&SOFTWARE_CPU_CLOCK, 0) {
            Ok(mut event) => {
                let mut count = [0; 8];
                event.read_exact(&mut count).unwrap();
                let first = u64::from_ne_bytes(count);
                event.read_exact(&mut count).unwrap();
                assert!(u64::from_ne_bytes(count) > first);
            }
            Err(error) => {
                let code = error.raw_os_error();
                let refusals = [libc::EACCES, libc::EPERM, libc::ENOSYS];
                assert!(code.is_some_and(|code| refusals.contains(&code)), "{error}");
            }
        }
    }
}
