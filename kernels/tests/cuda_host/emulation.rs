//! The emulation itself: it runs what is right and reports what is wrong.

use std::sync::LazyLock;

use wattle_kernels::cuda::Launch;

use crate::harness::{Argument, Buffer, Kernels, Order, assert_close, floats, unwritten, values};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("host/selftest.cu"));

#[track_caller]
fn message(kernel: &str, launch: Launch, arguments: &[Argument]) -> String {
    let error = KERNELS.try_launch(kernel, Order::Forward, launch, arguments).unwrap_err();
    // Whatever went wrong, the next launch starts afresh.
    let mut out = Buffer::new(&[0i32; 32]);
    KERNELS.launch("some_lanes_meet", Order::Reversed, Launch::row(1, 32), &[out.pointer()]);
    error
}

#[test]
fn barriers_and_shuffles_give_sums() {
    let x = values(3 * 96, 1);
    let sums = |width: usize| -> Vec<f64> {
        x.chunks(width).flat_map(|x| vec![x.iter().sum::<f64>(); x.len()]).collect()
    };
    for order in Order::ALL {
        let (mut x, mut blocks, mut warps) =
            (floats::<f32>(&x), unwritten::<f32>(288), unwritten::<f32>(288));
        let arguments = [x.pointer(), blocks.pointer(), warps.pointer()];
        KERNELS.launch("sums", order, Launch::row(3, 96), &arguments);
        assert_close(&blocks, &sums(96), 1e-6);
        assert_close(&warps, &sums(32), 1e-6);
    }
}

#[test]
fn parts_of_a_warp_can_meet_by_themselves() {
    for order in Order::ALL {
        let mut out = Buffer::new(&[0i32; 32]);
        KERNELS.launch("some_lanes_meet", order, Launch::row(1, 32), &[out.pointer()]);
        let want: Vec<i32> = (0..32).map(|lane| if lane < 8 { 28 } else { 8 }).collect();
        assert_eq!(out.read(), want);
    }
}

#[test]
fn a_thread_that_never_comes_to_a_barrier_is_reported() {
    let message = message("barrier_in_a_branch", Launch::row(1, 64), &[]);
    assert!(message.contains("32 threads: __syncthreads at line"), "{message}");
    assert!(message.contains("32 threads: returned"), "{message}");
}

#[test]
fn one_barrier_at_two_lines_is_reported() {
    let message = message("two_barriers_for_one", Launch::row(1, 64), &[]);
    assert!(message.contains("other threads are at line"), "{message}");
}

#[test]
fn divergence_at_a_shuffle_is_reported() {
    let mut out = Buffer::new(&[0i32; 32]);
    let message = message("shuffle_in_a_branch", Launch::row(1, 32), &[out.pointer()]);
    assert!(message.contains("has returned") || message.contains("no thread"), "{message}");
    let message = self::message("two_shuffles_for_one", Launch::row(1, 32), &[out.pointer()]);
    assert!(message.contains("is at __ballot_sync"), "{message}");
}

#[test]
fn writes_behind_shared_memory_are_reported() {
    let launch = Launch { shared_bytes: 64, ..Launch::row(1, 64) };
    let message = message("shared_overrun", launch, &[]);
    assert!(message.contains("written 0 bytes behind its end"), "{message}");
}

#[test]
fn shared_memory_that_nobody_wrote_reads_as_nan() {
    let mut out = unwritten::<f32>(64);
    KERNELS.launch("unwritten_shared", Order::Forward, Launch::row(1, 64), &[out.pointer()]);
    let out = out.read();
    assert_eq!(out[0], 1.0);
    assert!(out[1..].iter().all(|x| x.is_nan()));
}

#[test]
fn misaligned_accesses_are_reported() {
    let mut out = unwritten::<f32>(8);
    let message = message("misaligned", Launch::row(1, 32), &[out.pointer()]);
    assert!(message.contains("no multiple of 16"), "{message}");
    let message = self::message("misaligned_vector", Launch::row(1, 32), &[out.pointer()]);
    assert!(message.contains("not aligned to the type"), "{message}");
}

#[test]
fn an_index_outside_a_shared_array_is_reported() {
    let mut out = Buffer::new(&[0i32; 32]);
    let message = message("outside_an_array", Launch::row(1, 32), &[out.pointer()]);
    assert!(message.contains("index 8 is outside the array"), "{message}");
}

#[test]
fn waiting_for_memory_that_nobody_changes_is_reported() {
    let mut flag = Buffer::new(&[0i32]);
    let message = message("wait_for_nobody", Launch::row(1, 32), &[flag.pointer()]);
    assert!(message.contains("32 threads: wait_for_nobody"), "{message}");
}

#[test]
fn a_wrong_number_of_arguments_and_an_impossible_block_are_refused() {
    assert!(message("wait_for_nobody", Launch::row(1, 32), &[]).contains("number of arguments"));
    let mut flag = Buffer::new(&[1i32]);
    let message = message("wait_for_nobody", Launch::row(1, 1056), &[flag.pointer()]);
    assert!(message.contains("1 to 1024 threads"), "{message}");
}
