//! Grouped matrix multiplication on the CPU: one product for each expert, all computed at once.

use crate::cpu::gemm::{Matrix, MatrixMut, Product, Values, ValuesMut, gemm_parallel};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn forward(x_ri: &Tensor, w_eoi: &Tensor, offsets_e: &Tensor, y_ro: &mut Tensor) -> Result<()> {
    rows_times_weights(x_ri, w_eoi, offsets_e, y_ro, |w_oi| w_oi.t())
}

pub(crate) fn backward_input(
    dy_ro: &Tensor,
    w_eoi: &Tensor,
    offsets_e: &Tensor,
    dx_ri: &mut Tensor,
) -> Result<()> {
    rows_times_weights(dy_ro, w_eoi, offsets_e, dx_ri, |w_oi| w_oi)
}

pub(crate) fn backward_weight(
    dy_ro: &Tensor,
    x_ri: &Tensor,
    offsets_e: &Tensor,
    dw_eoi: &mut Tensor,
) -> Result<()> {
    let (o, i) = (dy_ro.last_dim(), x_ri.last_dim());
    let (dy, x, offsets) = (Values::of(dy_ro)?, Values::of(x_ri)?, offsets_e.data::<i32>()?);
    let mut dw = ValuesMut::of(dw_eoi)?;
    let mut products = Vec::with_capacity(offsets.len());
    for pair in offsets.windows(2) {
        let (start, rows) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
        let (dw_oi, rest) = dw.split_at(o * i);
        dw = rest;
        products.push(Product {
            a: Matrix::new(dy.part(start * o, rows * o), rows, o, o).t(),
            b: Matrix::new(x.part(start * i, rows * i), rows, i, i),
            c: MatrixMut::new(dw_oi, o, i, i),
        });
    }
    gemm_parallel(&mut products, true)
}

/// Each expert's rows of `x` times `orient` of its weight into the same rows of `y`; rows behind the last expert's
/// become zero.
fn rows_times_weights(
    x: &Tensor,
    w: &Tensor,
    offsets_e: &Tensor,
    y: &mut Tensor,
    orient: impl for<'w> Fn(Matrix<'w>) -> Matrix<'w>,
) -> Result<()> {
    let (o, i) = (w.shape()[1], w.last_dim());
    let (x_cols, y_cols, num_rows) = (x.last_dim(), y.last_dim(), x.num_rows());
    let (x, w, offsets) = (Values::of(x)?, Values::of(w)?, offsets_e.data::<i32>()?);
    let mut y = ValuesMut::of(y)?;
    let mut products = Vec::with_capacity(offsets.len());
    let mut end = 0;
    for (e, pair) in offsets.windows(2).enumerate() {
        let (start, rows) = (end, (pair[1] - pair[0]) as usize);
        end += rows;
        let (y_rows, rest) = y.split_at(rows * y_cols);
        y = rest;
        products.push(Product {
            a: Matrix::new(x.part(start * x_cols, rows * x_cols), rows, x_cols, x_cols),
            b: orient(Matrix::new(w.part(e * o * i, o * i), o, i, i)),
            c: MatrixMut::new(y_rows, rows, y_cols, y_cols),
        });
    }
    MatrixMut::new(y, num_rows - end, y_cols, y_cols).fill_zero();
    gemm_parallel(&mut products, false)
}

#[cfg(test)]
mod tests {
    use crate::dtype::bf16;
    use crate::ops::grouped_matmul::{backward_input, backward_weight, forward};
    use crate::reference::grouped_matmul as reference;
    use crate::rng::{Philox, Purpose};
    use crate::tensor::Tensor;

    /// Groups of no, one and many rows, and three rows of padding.
    const OFFSETS: [usize; 7] = [0, 0, 1, 65, 65, 600, 600];
    const SHAPE: [usize; 3] = [603, 70, 45];

    struct Case {
        x_ri: Tensor,
        w_eoi: Tensor,
        dy_ro: Tensor,
        offsets: Tensor,
    }

    fn case() -> Case {
        let [r, o, i] = SHAPE;
        let experts = OFFSETS.len() - 1;
        Case {
            x_ri: random(1, &[r, i]),
            w_eoi: random(2, &[experts, o, i]),
            dy_ro: random(3, &[r, o]),
            offsets: Tensor::from_slice(&OFFSETS.map(|x| x as i32), &[OFFSETS.len()]).unwrap(),
        }
    }

    fn random(stream: u64, shape: &[usize]) -> Tensor {
        let rng = Philox::new(3, Purpose::Synthetic, stream);
        let values: Vec<bf16> = (0..shape.iter().product::<usize>() as u64)
            .map(|i| bf16::from_f64(rng.uniform(i) - 0.5))
            .collect();
        Tensor::from_slice(&values, shape).unwrap()
    }

    fn f64s(tensor: &Tensor) -> Vec<f64> {
        tensor.to_f32_vec().unwrap().into_iter().map(f64::from).collect()
    }

    fn assert_close(got: &Tensor, want: &[f64], tolerance: f64) {
        for (index, (got, want)) in f64s(got).into_iter().zip(want).enumerate() {
            assert!((got - want).abs() <= tolerance, "at {index}: {got}, want {want}");
        }
    }

    #[test]
    fn each_expert_multiplies_its_own_rows_and_padding_is_zero() {
        let Case { x_ri, w_eoi, dy_ro, offsets } = case();
        let y = forward(&x_ri, &w_eoi, &offsets).unwrap();
        // Values below 4 in bf16 (8 significant bits) are off by half a step of 2^-6 at most. Where products are summed
        // in fp16, so are their sums: up to 70 products of a root mean square of 1/12, ten times the deviation of
        // 1.6e-3 of that (`gemm::kernel_fp16`).
        let tolerance = 0.51 / 64.0 + 2f64.powi(-6) * 70f64.sqrt() / 12.0;
        assert_close(&y, &reference::forward(&f64s(&x_ri), &f64s(&w_eoi), &OFFSETS, SHAPE), tolerance);
        assert!(f64s(&y)[600 * 70..].iter().all(|&y| y == 0.0));

        let dx = backward_input(&dy_ro, &w_eoi, &offsets).unwrap();
        assert_close(
            &dx,
            &reference::backward_input(&f64s(&dy_ro), &f64s(&w_eoi), &OFFSETS, SHAPE),
            tolerance,
        );
        assert!(f64s(&dx)[600 * 45..].iter().all(|&dx| dx == 0.0));
    }

    #[test]
    fn weight_gradients_add_up_and_experts_without_rows_keep_theirs() {
        let Case { x_ri, dy_ro, offsets, .. } = case();
        let [_, o, i] = SHAPE;
        let experts = OFFSETS.len() - 1;
        let mut dw = Tensor::from_slice(&vec![0.25f32; experts * o * i], &[experts, o, i]).unwrap();
        backward_weight(&dy_ro, &x_ri, &offsets, &mut dw).unwrap();
        let mut want = reference::backward_weight(&f64s(&dy_ro), &f64s(&x_ri), &OFFSETS, SHAPE);
        want.iter_mut().for_each(|want| *want += 0.25);
        // At most 535 products below 1/4: roundings of 2^-24 of at most 134 each, and sums in fp16 as above.
        assert_close(&dw, &want, 535.0 * 134.0 * 2f64.powi(-24) + 2f64.powi(-6) * 535f64.sqrt() / 12.0);
        for e in [0, 3, 5] {
            assert!(f64s(&dw)[e * o * i..][..o * i].iter().all(|&dw| dw == 0.25), "expert {e}");
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let Case { x_ri, w_eoi, dy_ro, offsets } = case();
        let bits_with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut dw = Tensor::from_slice(&vec![0.25f32; 6 * 70 * 45], &[6, 70, 45]).unwrap();
                backward_weight(&dy_ro, &x_ri, &offsets, &mut dw).unwrap();
                let y = forward(&x_ri, &w_eoi, &offsets).unwrap();
                let dx = backward_input(&dy_ro, &w_eoi, &offsets).unwrap();
                [y, dx, dw].map(|result| result.to_f32_vec().unwrap()).concat()
            })
        };
        let one = bits_with(1);
        for threads in [2, 3, 5] {
            let same = one.iter().zip(bits_with(threads)).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{threads} threads");
        }
    }
}
