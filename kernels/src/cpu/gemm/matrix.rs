//! Views of matrices in memory: the operands and the result of a product.

use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::tensor::Tensor;

/// A read-only matrix whose rows (or, transposed, columns) are contiguous.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(super) values: Values<'a>,
    rows: usize,
    cols: usize,
    /// Elements from one stored row to the next.
    pub(super) stride: usize,
    transposed: bool,
}

/// The result of a product, row-major.
pub(crate) struct MatrixMut<'a> {
    pub(super) values: ValuesMut<'a>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
}

/// The elements behind a [`Matrix`].
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// The elements behind a [`MatrixMut`].
pub(crate) enum ValuesMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

impl<'a> Matrix<'a> {
    /// `rows` × `cols` elements; row r starts at `r * stride`.
    ///
    /// # Panics
    /// When the matrix does not fit into `values`: a mistake of the calling kernel.
    pub(crate) fn new(values: impl Into<Values<'a>>, rows: usize, cols: usize, stride: usize) -> Self {
        let values = values.into();
        assert!(fits(values.len(), rows, cols, stride), "{rows}x{cols} by {stride} in {}", values.len());
        Matrix { values, rows, cols, stride, transposed: false }
    }

    /// The transpose, without moving anything.
    pub(crate) fn t(self) -> Self {
        Matrix { transposed: !self.transposed, ..self }
    }

    pub(super) fn rows(&self) -> usize {
        if self.transposed { self.cols } else { self.rows }
    }

    pub(super) fn cols(&self) -> usize {
        if self.transposed { self.rows } else { self.cols }
    }

    pub(super) fn rows_are_contiguous(&self) -> bool {
        !self.transposed
    }
}

impl<'a> MatrixMut<'a> {
    /// `rows` × `cols` elements; row r starts at `r * stride`.
    ///
    /// # Panics
    /// When the matrix does not fit into `values`: a mistake of the calling kernel.
    pub(crate) fn new(values: impl Into<ValuesMut<'a>>, rows: usize, cols: usize, stride: usize) -> Self {
        let values = values.into();
        assert!(fits(values.len(), rows, cols, stride), "{rows}x{cols} by {stride} in {}", values.len());
        MatrixMut { values, rows, cols, stride }
    }

    /// Sets every element to zero.
    pub(crate) fn fill_zero(&mut self) {
        for row in 0..self.rows {
            let range = row * self.stride..row * self.stride + self.cols;
            match &mut self.values {
                ValuesMut::F32(values) => values[range].fill(0.0),
                ValuesMut::Bf16(values) => values[range].fill(bf16::ZERO),
            }
        }
    }
}

impl<'a> Values<'a> {
    /// All elements of a float tensor.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        Ok(match tensor.dtype() {
            DType::Bf16 => Values::Bf16(tensor.data()?),
            _ => Values::F32(tensor.data()?),
        })
    }

    /// The `len` elements from `start` on.
    pub(crate) fn part(self, start: usize, len: usize) -> Self {
        match self {
            Values::F32(values) => Values::F32(&values[start..][..len]),
            Values::Bf16(values) => Values::Bf16(&values[start..][..len]),
        }
    }

    fn len(&self) -> usize {
        match self {
            Values::F32(values) => values.len(),
            Values::Bf16(values) => values.len(),
        }
    }
}

impl<'a> ValuesMut<'a> {
    /// All elements of a float tensor, for writing.
    pub(crate) fn of(tensor: &'a mut Tensor) -> Result<Self> {
        Ok(match tensor.dtype() {
            DType::Bf16 => ValuesMut::Bf16(tensor.data_mut()?),
            _ => ValuesMut::F32(tensor.data_mut()?),
        })
    }

    /// The first `len` elements and the rest.
    pub(crate) fn split_at(self, len: usize) -> (Self, Self) {
        match self {
            ValuesMut::F32(values) => {
                let (head, tail) = values.split_at_mut(len);
                (ValuesMut::F32(head), ValuesMut::F32(tail))
            }
            ValuesMut::Bf16(values) => {
                let (head, tail) = values.split_at_mut(len);
                (ValuesMut::Bf16(head), ValuesMut::Bf16(tail))
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            ValuesMut::F32(values) => values.len(),
            ValuesMut::Bf16(values) => values.len(),
        }
    }
}

impl<'a> From<&'a [f32]> for Values<'a> {
    fn from(values: &'a [f32]) -> Self {
        Values::F32(values)
    }
}

impl<'a> From<&'a [bf16]> for Values<'a> {
    fn from(values: &'a [bf16]) -> Self {
        Values::Bf16(values)
    }
}

impl<'a> From<&'a mut [f32]> for ValuesMut<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        ValuesMut::F32(values)
    }
}

impl<'a> From<&'a mut [bf16]> for ValuesMut<'a> {
    fn from(values: &'a mut [bf16]) -> Self {
        ValuesMut::Bf16(values)
    }
}

fn fits(len: usize, rows: usize, cols: usize, stride: usize) -> bool {
    let needed = match rows {
        0 => Some(0),
        _ => (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(cols)),
    };
    cols <= stride && needed.is_some_and(|needed| needed <= len)
}
