//! Speed of the matrix products at the shapes of the benchmark presets, as GFLOP/s and as a share of the fastest
//! multiply-add loop that this machine runs on the same number of threads.
//!
//! `RAYON_NUM_THREADS=2 cargo run --release -p wattle-kernels --example gemm_speed`

use std::time::Instant;

use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{DType, Result, Tensor, bf16, bf16_is_fast, ops, peak, simd_level};

/// Rounds over all cases; each case reports its best run, since other work on the machine only ever slows it.
const ROUNDS: usize = 9;

struct Case {
    name: String,
    flops: f64,
    run: Box<dyn FnMut() -> Result<()>>,
    best_s: f64,
    /// FLOPs for each second of processor time over those of the multiply-add loop run just before: what other
    /// programs take of the machine slows both or neither.
    shares: Vec<f64>,
}

fn main() -> Result<()> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::Bf16] {
        for (rows, o, i) in [(4096, 256, 256), (4096, 128, 256), (4096, 512, 512), (512, 4096, 256)] {
            dense(&mut cases, dtype, rows, o, i)?;
        }
        for (experts, rows, o, i) in [
            (8, 8192, 1024, 256),
            (8, 8192, 256, 512),
            (16, 8192, 1536, 512),
            (64, 32768, 512, 512),
            (64, 32768, 512, 256),
        ] {
            grouped(&mut cases, dtype, experts, rows, o, i)?;
        }
    }
    dense(&mut cases, DType::F32, 4096, 8, 256)?;
    dense(&mut cases, DType::F32, 4096, 64, 512)?;
    dense(&mut cases, DType::F32, 1, 1024, 256)?;
    // Words of the command line choose cases by name, such as `backward_weight`.
    let words: Vec<String> = std::env::args().skip(1).collect();
    cases.retain(|case| words.iter().all(|word| case.name.contains(word)));

    let mut best_peak = 0.0f64;
    for _ in 0..ROUNDS {
        for case in &mut cases {
            let (peak_wall, peak_cpu) = multiply_add_peak();
            let (start, start_cpu) = (Instant::now(), cpu_seconds());
            (case.run)()?;
            let (wall_s, cpu_s) = (start.elapsed().as_secs_f64(), cpu_seconds() - start_cpu);
            best_peak = best_peak.max(peak_wall);
            case.best_s = case.best_s.min(wall_s);
            case.shares.push(case.flops / cpu_s / peak_cpu);
        }
    }
    println!(
        "{:?}, bf16 native: {}, {} threads, f32 FMA peak {:.1} GFLOP/s",
        simd_level(),
        bf16_is_fast(),
        rayon::current_num_threads(),
        best_peak / 1e9
    );
    for case in &mut cases {
        case.shares.sort_by(f64::total_cmp);
        println!(
            "{:<48} {:>8.3} ms {:>7.1} GFLOP/s, median share {:>5.1} %",
            case.name,
            case.best_s * 1e3,
            case.flops / case.best_s / 1e9,
            case.shares[case.shares.len() / 2] * 100.0
        );
    }
    Ok(())
}

fn dense(cases: &mut Vec<Case>, dtype: DType, rows: usize, o: usize, i: usize) -> Result<()> {
    let (x, w, dy) = (random(&[rows, i], dtype)?, random(&[o, i], dtype)?, random(&[rows, o], dtype)?);
    let mut dw = random(&[o, i], DType::F32)?;
    let mut push = |form: &str, run: Box<dyn FnMut() -> Result<()>>| {
        let name = format!("{form:<15} {dtype} t={rows} o={o} i={i}");
        cases.push(Case {
            name,
            flops: 2.0 * (rows * o * i) as f64,
            run,
            best_s: f64::INFINITY,
            shares: Vec::new(),
        });
    };
    let (x1, w1, dy1) = (x.clone(), w.clone(), dy.clone());
    push("forward", Box::new(move || ops::matmul::forward(&x1, &w1, dtype).map(drop)));
    push("backward_input", Box::new(move || ops::matmul::backward_input(&dy1, &w, None).map(drop)));
    push("backward_weight", Box::new(move || ops::matmul::backward_weight(&dy, &x, &mut dw)));
    Ok(())
}

fn grouped(
    cases: &mut Vec<Case>,
    dtype: DType,
    experts: usize,
    rows: usize,
    o: usize,
    i: usize,
) -> Result<()> {
    let (x, w, dy) =
        (random(&[rows, i], dtype)?, random(&[experts, o, i], dtype)?, random(&[rows, o], dtype)?);
    let mut dw = random(&[experts, o, i], DType::F32)?;
    // Loads between half and one and a half times the mean.
    let edge = |e: usize| {
        let even = e as f64 / experts as f64;
        ((even + 0.5 * even * (even - 1.0)) * rows as f64) as i32
    };
    let offsets: Vec<i32> = (0..=experts).map(edge).collect();
    let offsets = Tensor::from_slice(&offsets, &[experts + 1])?;
    let mut push = |form: &str, run: Box<dyn FnMut() -> Result<()>>| {
        let name = format!("{form:<15} {dtype} e={experts} r={rows} o={o} i={i}");
        cases.push(Case {
            name,
            flops: 2.0 * (rows * o * i) as f64,
            run,
            best_s: f64::INFINITY,
            shares: Vec::new(),
        });
    };
    let (x1, w1, dy1, offsets1, offsets2) =
        (x.clone(), w.clone(), dy.clone(), offsets.clone(), offsets.clone());
    push("forward", Box::new(move || ops::grouped_matmul::forward(&x1, &w1, &offsets1).map(drop)));
    push(
        "backward_input",
        Box::new(move || ops::grouped_matmul::backward_input(&dy1, &w, &offsets2).map(drop)),
    );
    push(
        "backward_weight",
        Box::new(move || ops::grouped_matmul::backward_weight(&dy, &x, &offsets, &mut dw)),
    );
    Ok(())
}

fn random(shape: &[usize], dtype: DType) -> Result<Tensor> {
    let rng = Philox::new(1, Purpose::Synthetic, shape.len() as u64);
    let values = (0..shape.iter().product::<usize>() as u64).map(|i| rng.uniform(i) as f32 - 0.5);
    match dtype {
        DType::Bf16 => Tensor::from_slice(&values.map(bf16::from_f32).collect::<Vec<_>>(), shape),
        _ => Tensor::from_slice(&values.collect::<Vec<_>>(), shape),
    }
}

/// FLOPs of independent multiply-adds in registers on all threads, for each second and each second of processor time.
fn multiply_add_peak() -> (f64, f64) {
    const STEPS: usize = 400_000;
    let (start, start_cpu) = (Instant::now(), cpu_seconds());
    let flops = peak::multiply_adds(STEPS);
    (flops / start.elapsed().as_secs_f64(), flops / (cpu_seconds() - start_cpu))
}

/// Processor time that this process has used so far.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
