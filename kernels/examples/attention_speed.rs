//! Speed of attention and of the fused linear cross-entropy at the sizes of the CPU presets.
//!
//! `cargo run --release -p wattle-kernels --example attention_speed [FILTER [REPETITIONS]]`
//!
//! Runs the lines whose label contains FILTER. Prints the median time and GFLOP/s; attention counts the visible half of a causal
//! mask only: 2·t·s·d FLOPs a head forward and 5·t·s·d backward. Cross-entropy counts 2·t·v·d FLOPs forward and
//! 6·t·v·d with gradients.

use std::time::Instant;

use wattle_kernels::ops::attention::{self, Mask};
use wattle_kernels::ops::cross_entropy;
use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{DType, Device, Result, Tensor, bf16};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let filter = arguments.next().unwrap_or_default();
    let repetitions = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(15);
    let bench = Bench { filter, repetitions };
    for dtype in [DType::F32, DType::Bf16] {
        bench.attention("S", [16, 256, 8, 4, 32], dtype)?;
        bench.attention("M", [8, 512, 8, 4, 64], dtype)?;
    }
    for dtype in [DType::F32, DType::Bf16] {
        bench.cross_entropy("S", [4096, 4096, 256], dtype)?;
    }
    Ok(())
}

struct Bench {
    filter: String,
    repetitions: usize,
}

impl Bench {
    fn attention(&self, preset: &str, [b, t, h, g, d]: [usize; 5], dtype: DType) -> Result<()> {
        let [q, d_out] = [1, 2].map(|stream| normals(&[b, t, h, d], stream, dtype));
        let [k, v] = [3, 4].map(|stream| normals(&[b, t, g, d], stream, dtype));
        let (q, d_out, k, v) = (q?, d_out?, k?, v?);
        let mask = Mask { causal: true, ..Mask::default() };
        let scale = 1.0 / (d as f32).sqrt();
        let flops = 2.0 * (b * h * t * t * d) as f64;
        let label = |pass| format!("attention {preset} {dtype} {pass}");
        self.measure(&label("forward"), flops, || attention::forward(&q, &k, &v, &mask, scale, 0))?;
        let (o, lse) = attention::forward(&q, &k, &v, &mask, scale, 0)?;
        self.measure(&label("backward"), 2.5 * flops, || {
            attention::backward(&d_out, &q, &k, &v, &o, &lse, &mask, scale, 0)
        })
    }

    fn cross_entropy(&self, preset: &str, [t, v, d]: [usize; 3], dtype: DType) -> Result<()> {
        let (x, w) = (normals(&[t, d], 1, dtype)?, normals(&[v, d], 2, dtype)?);
        let targets: Vec<i32> = (0..t).map(|t| (t * 31 % v) as i32).collect();
        let targets = Tensor::from_slice(&targets, &[t])?;
        let mut dw = Tensor::zeros(&[v, d], DType::F32, Device::Cpu)?;
        let flops = 2.0 * (t * v * d) as f64;
        let label = |pass| format!("cross-entropy {preset} {dtype} {pass}");
        self.measure(&label("forward"), flops, || cross_entropy::forward(&x, &w, &targets))?;
        self.measure(&label("with gradients"), 3.0 * flops, || {
            cross_entropy::forward_backward(&x, &w, &targets, 1.0 / t as f32, &mut dw)
        })
    }

    fn measure<T>(&self, label: &str, flops: f64, mut call: impl FnMut() -> Result<T>) -> Result<()> {
        if !label.contains(&self.filter) {
            return Ok(());
        }
        call()?;
        let mut seconds = Vec::new();
        for _ in 0..self.repetitions.max(1) {
            let start = Instant::now();
            call()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        let (median, best) = (seconds[seconds.len() / 2], seconds[0]);
        println!(
            "{label:40} {:8.2} ms  {:6.1} GFLOP/s  (best {:6.1})",
            1e3 * median,
            flops / median / 1e9,
            flops / best / 1e9
        );
        Ok(())
    }
}

fn normals(shape: &[usize], stream: u64, dtype: DType) -> Result<Tensor> {
    let rng = Philox::new(1, Purpose::Synthetic, stream);
    let values = (0..shape.iter().product::<usize>() as u64).map(|i| rng.normal(i));
    match dtype {
        DType::Bf16 => Tensor::from_slice(&values.map(bf16::from_f64).collect::<Vec<_>>(), shape),
        _ => Tensor::from_slice(&values.map(|x| x as f32).collect::<Vec<_>>(), shape),
    }
}
