//! `routing_load.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::calls::routing_load as calls;

use crate::harness::{
    Argument, Buffer, Kernels, Order, bits, floats, in_both_orders, indices, unwritten, values,
};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("routing_load.cu"));

#[test]
fn the_tally_gains_demand_rows_and_entropy() {
    for (t, e) in [(0, 1), (7, 3), (2500, 40), (9, 1024)] {
        let (tokens, entropy) = (indices(e, 50, 1), values(t, 2));
        let offsets: Vec<i32> = (0..=e as i32).map(|expert| expert * 3 / 2).collect();
        let before = indices(2 * e, 9, 3);
        let sums: Vec<i32> = in_both_orders(|order| {
            let (mut tokens, mut offsets) = (Buffer::new(&tokens), Buffer::new(&offsets));
            let mut sums = before.clone();
            let half = 0.5f64.to_ne_bytes();
            sums.extend(half.as_chunks().0.iter().map(|&bytes| i32::from_ne_bytes(bytes)));
            let (mut entropy, mut sums) = (floats::<f32>(&entropy), Buffer::new(&sums));
            let buffers = [tokens.pointer(), offsets.pointer(), entropy.pointer(), sums.pointer()];
            KERNELS.run(order, &calls::add(buffers, [t, e]).unwrap());
            sums.read()
        });
        for expert in 0..e {
            assert_eq!(sums[expert], before[expert] + tokens[expert]);
            assert_eq!(sums[e + expert], before[e + expert] + offsets[expert + 1] - offsets[expert]);
        }
        let bytes: Vec<u8> = sums[2 * e..].iter().flat_map(|element| element.to_ne_bytes()).collect();
        let (got, want) = (f64::from_ne_bytes(bytes.try_into().unwrap()), 0.5 + entropy.iter().sum::<f64>());
        assert!((got - want).abs() <= 1e-10, "{got} and {want}");
    }
}

#[test]
fn each_group_counts_its_own_load() {
    let (groups, per_group, e) = (3, 700, 40);
    let experts = indices(groups * per_group, e, 4);
    let want: Vec<i32> = experts
        .chunks(per_group)
        .flat_map(|group| (0..e).map(|expert| group.iter().filter(|&&x| x == expert as i32).count() as i32))
        .collect();
    for order in Order::ALL {
        let (mut indices, mut load) = (Buffer::new(&experts), Buffer::new(&vec![-1i32; groups * e]));
        let call = calls::by_group([indices.pointer(), load.pointer()], [groups, e], per_group).unwrap();
        KERNELS.run(order, &call);
        assert_eq!(load.read(), want);
    }
}

#[test]
fn shares_are_each_groups_load_with_the_earlier_one_over_their_sum() {
    for (groups, e) in [(1, 1), (3, 40), (2, 1024)] {
        let (mut load, earlier) = (indices(groups * e, 50, 5), indices(e, 50, 6));
        load[..e].fill(0);
        for earlier in [None, Some(&earlier)] {
            let want = load.chunks(e).flat_map(|load| {
                let load: Vec<f64> =
                    (0..e).map(|i| f64::from(load[i] + earlier.map_or(0, |earlier| earlier[i]))).collect();
                let sum: f64 = load.iter().sum();
                load.into_iter().map(move |load| f64::from(if sum > 0.0 { (load / sum) as f32 } else { 0.0 }))
            });
            let want: Vec<u64> = want.map(f64::to_bits).collect();
            let got = in_both_orders(|order| {
                let (mut load, mut earlier) =
                    (Buffer::new(&load), earlier.map(|earlier| Buffer::new(earlier)));
                let mut shares = unwritten::<f32>(groups * e);
                let earlier = earlier.as_mut().map_or(Argument::NULL, Buffer::pointer);
                let buffers = [load.pointer(), earlier, shares.pointer()];
                KERNELS.run(order, &calls::shares(buffers, [groups, e]).unwrap());
                bits(&shares)
            });
            assert_eq!(got, want);
        }
    }
}

#[test]
fn the_bias_moves_towards_an_even_load() {
    let (mut bias, mut load) = (floats::<f32>(&[0.5, 0.5, 0.5, 0.5]), Buffer::new(&[4, 1, 7, 4]));
    KERNELS.run(Order::Forward, &calls::update_bias([bias.pointer(), load.pointer()], 4, 0.25).unwrap());
    assert_eq!(bias.read(), [0.5, 0.75, 0.25, 0.5]);
}

#[test]
fn more_experts_than_a_block_has_threads_are_refused() {
    let error = calls::update_bias([Argument::NULL; 2], 1025, 0.1).unwrap_err().to_string();
    let wanted =
        "routing_load: load has shape [1, 1025], expected at most 1024 experts; more only run on the cpu";
    assert_eq!(error, wanted);
}
