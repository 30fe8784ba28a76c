//! `elementwise.cu` and `bias.cu`.

use super::super::{Argument, Call, Floats, geometry};
use crate::dtype::DType;
use crate::error::Result;

/// out = a + b over `n` elements of one dtype; out may be an operand.
pub fn add(a: Floats, b: Argument, out: Argument, n: usize) -> Call {
    call(format!("add_{}", a.dtype), n, vec![a.pointer, b, out, Argument::long(n)])
}

/// out = a·factor over `n` elements of one dtype; out may be a.
pub fn scale(a: Floats, out: Argument, n: usize, factor: f32) -> Call {
    let arguments = vec![a.pointer, out, Argument::long(n), Argument::F32(factor)];
    call(format!("scale_{}", a.dtype), n, arguments)
}

/// out = x over `n` elements, from f32 to bf16 or back.
pub fn cast(x: Floats, out: Argument, n: usize) -> Call {
    let to = if x.dtype == DType::F32 { DType::Bf16 } else { DType::F32 };
    call(format!("cast_{}_{to}", x.dtype), n, vec![x.pointer, out, Argument::long(n)])
}

/// y = x + bias over `rows` rows of `n`; bias is f32, y may be x.
///
/// # Errors
/// Rows too long for an `int`.
pub fn bias(x: Floats, bias: Argument, y: Argument, [rows, n]: [usize; 2]) -> Result<Call> {
    let geometry = geometry::bias(rows, n, x.dtype.size_in_bytes());
    let width = Argument::int(geometry.width as usize)?;
    let arguments = vec![x.pointer, bias, y, Argument::long(rows), Argument::int(n)?, width];
    Ok(Call {
        source: "bias.cu",
        kernel: format!("bias_forward_{}", x.dtype),
        launch: geometry.launch,
        arguments,
    })
}

fn call(kernel: String, n: usize, arguments: Vec<Argument>) -> Call {
    Call { source: "elementwise.cu", kernel, launch: geometry::elementwise(n), arguments }
}
