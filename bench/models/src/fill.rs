//! Fills the rows of a tensor with random numbers of its type.
//!
//! Blocks of quantized types are not computed from floating point numbers: the quants are random
//! bits, the scales come from a small table that is made once for a tensor so that the decoded
//! numbers have the wanted mean square. That is as fast as random bits are.

use gguf::GgmlType;
use half::f16;

use crate::Error;
use crate::rng::{BELL_ENTRIES, Rng, bell};

/// The first elements of a row that may follow a rule of their own.
///
/// Embeddings are positive there, so that the sum over these channels of the hidden state is always
/// well above 0. An output row that is negative there can never win: this keeps unused tokens from
/// being generated.
pub(crate) const BIAS_CHANNELS: usize = 32;

/// What the numbers in a piece of a row look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Style {
    /// Mean 0, this root mean square.
    Noise(f32),
    /// As noise of this root mean square, but all positive.
    Positive(f32),
    /// All the same negative number.
    Negative(f32),
}

/// How one row is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RowStyle {
    /// The first [`BIAS_CHANNELS`] elements.
    pub(crate) first: Style,
    /// Root mean square of the others.
    pub(crate) rest_rms: f32,
}

impl RowStyle {
    /// The same noise everywhere.
    pub(crate) fn noise(rms: f32) -> RowStyle {
        RowStyle {
            first: Style::Noise(rms),
            rest_rms: rms,
        }
    }
}

/// Makes rows of one type and style.
#[derive(Debug)]
pub(crate) enum RowMaker {
    F32 {
        first: Vec<f32>,
        rest: Vec<f32>,
    },
    F16 {
        first: Vec<u16>,
        rest: Vec<u16>,
    },
    Blocks {
        format: Format,
        first: BlockMaker,
        rest: BlockMaker,
    },
}

/// Number of ready-made block headers per tensor; a power of two.
const HEADERS: usize = 64;

/// Makes blocks: random quants with one of the ready-made headers.
#[derive(Debug)]
pub(crate) struct BlockMaker {
    headers: Vec<[u8; 18]>,
    style: Style,
}

/// The layout of a block in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Format {
    kind: Kind,
    block_bytes: usize,
    /// Where scales and minima are.
    header_at: usize,
    header_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Mxfp4,
    Q4_0,
    Q5_0,
    Q8_0,
    Q4K,
    Q6K,
}

impl Format {
    fn of(ggml_type: GgmlType) -> Option<Format> {
        let (kind, header_at, header_bytes) = match ggml_type {
            GgmlType::MXFP4 => (Kind::Mxfp4, 0, 1),
            GgmlType::Q4_0 => (Kind::Q4_0, 0, 2),
            GgmlType::Q5_0 => (Kind::Q5_0, 0, 2),
            GgmlType::Q8_0 => (Kind::Q8_0, 0, 2),
            GgmlType::Q4_K => (Kind::Q4K, 0, 16),
            GgmlType::Q6_K => (Kind::Q6K, 192, 18),
            _ => return None,
        };
        let block_bytes = ggml_type.block_bytes()? as usize;
        Some(Format {
            kind,
            block_bytes,
            header_at,
            header_bytes,
        })
    }
}

impl RowMaker {
    /// A maker of rows.
    ///
    /// # Errors
    /// [`Error::Type`] if rows of this type cannot be made.
    pub(crate) fn new(ggml_type: GgmlType, style: RowStyle) -> Result<RowMaker, Error> {
        let rest = Style::Noise(style.rest_rms);
        if let Some(format) = Format::of(ggml_type) {
            // A K-quant block is larger than the bias channels: its first one is of two styles.
            let first = BlockMaker::new(format.kind, style.first, style.rest_rms);
            let rest = BlockMaker::new(format.kind, rest, style.rest_rms);
            return Ok(RowMaker::Blocks {
                format,
                first,
                rest,
            });
        }
        let bits = |table: Vec<f32>| {
            table
                .into_iter()
                .map(|v| f16::from_f32(v).to_bits())
                .collect()
        };
        match ggml_type {
            GgmlType::F32 => Ok(RowMaker::F32 {
                first: table(style.first),
                rest: table(rest),
            }),
            GgmlType::F16 => Ok(RowMaker::F16 {
                first: bits(table(style.first)),
                rest: bits(table(rest)),
            }),
            _ => Err(Error::Type {
                ggml_type: ggml_type.to_string(),
            }),
        }
    }

    /// Overwrites `row`, the bytes of one row.
    pub(crate) fn make(&self, row: &mut [u8], rng: &mut Rng) {
        match self {
            RowMaker::F32 { first, rest } => {
                let (a, b) = row.split_at_mut((4 * BIAS_CHANNELS).min(row.len()));
                draw(a, rng, |i| first[i].to_le_bytes());
                draw(b, rng, |i| rest[i].to_le_bytes());
            }
            RowMaker::F16 { first, rest } => {
                let (a, b) = row.split_at_mut((2 * BIAS_CHANNELS).min(row.len()));
                draw(a, rng, |i| first[i].to_le_bytes());
                draw(b, rng, |i| rest[i].to_le_bytes());
            }
            RowMaker::Blocks {
                format,
                first,
                rest,
            } => {
                rng.fill(row);
                let (a, b) = row.split_at_mut(format.block_bytes.min(row.len()));
                first.finish(*format, a);
                b.chunks_exact_mut(format.block_bytes)
                    .for_each(|block| rest.finish(*format, block));
            }
        }
    }
}

/// Overwrites `out` with elements of `N` bytes that `element` has under random numbers of 12 bits.
#[inline]
fn draw<const N: usize>(out: &mut [u8], rng: &mut Rng, element: impl Fn(usize) -> [u8; N]) {
    for group in out.chunks_mut(5 * N) {
        let mut bits = rng.next();
        for place in group.chunks_exact_mut(N) {
            place.copy_from_slice(&element(bits as usize % BELL_ENTRIES));
            bits >>= 12;
        }
    }
}

/// Equally likely numbers of a style.
fn table(style: Style) -> Vec<f32> {
    let bell = bell();
    match style {
        Style::Noise(rms) => bell.into_iter().map(|v| v * rms).collect(),
        Style::Positive(rms) => bell.into_iter().map(|v| v.abs() * rms).collect(),
        Style::Negative(value) => vec![value; BELL_ENTRIES],
    }
}

/// Scale factors from 0.75 to 1.25 with mean square 1.
fn spread(i: usize) -> f32 {
    let raw = |i: usize| 0.75 + 0.5 * (i as f32 + 0.5) / HEADERS as f32;
    // The mean square of an even distribution from 0.75 to 1.25.
    raw(i) / (1.0 + 0.25f32 / 12.0).sqrt()
}

impl BlockMaker {
    fn new(kind: Kind, style: Style, rest_rms: f32) -> BlockMaker {
        let mut header_rng = Rng::new(0, "block headers", 0);
        let headers = (0..HEADERS)
            .map(|i| {
                let mut header = [0u8; 18];
                match kind {
                    Kind::Mxfp4 => header[0] = mxfp4_exponent(style, i),
                    Kind::Q4_0 | Kind::Q5_0 | Kind::Q8_0 => {
                        header[..2].copy_from_slice(&f16_bytes(one_scale(kind, style, i)));
                    }
                    Kind::Q4K => q4k_header(&mut header, style, rest_rms, i, &mut header_rng),
                    Kind::Q6K => q6k_header(&mut header, style, rest_rms, i, &mut header_rng),
                }
                header
            })
            .collect();
        BlockMaker { headers, style }
    }

    /// Turns a block of random bytes into one of this style.
    #[inline]
    fn finish(&self, format: Format, block: &mut [u8]) {
        let choice = usize::from(block[format.header_at]) % HEADERS;
        let header = &self.headers[choice][..format.header_bytes];
        block[format.header_at..][..format.header_bytes].copy_from_slice(header);
        match self.style {
            Style::Noise(_) => {}
            Style::Positive(_) => positive_quants(format.kind, block),
            Style::Negative(_) => negative_quants(format.kind, block),
        }
    }
}

fn f16_bytes(value: f32) -> [u8; 2] {
    f16::from_f32(value).to_le_bytes()
}

/// The root mean square of random quants at scale 1.
fn quant_rms(kind: Kind) -> f32 {
    match kind {
        // 0, 0.5, 1, 1.5, 2, 3, 4, 6.
        Kind::Mxfp4 => 2.926,
        // -8 to 7, -16 to 15, -128 to 127.
        Kind::Q4_0 => 4.637,
        Kind::Q5_0 => 9.247,
        Kind::Q8_0 => 73.9,
        // 0 to 15 less their mean 7.5.
        Kind::Q4K => 4.610,
        // -32 to 31.
        Kind::Q6K => 18.48,
    }
}

/// The scale of a block that has one scale and signed quants.
fn one_scale(kind: Kind, style: Style, i: usize) -> f32 {
    match style {
        // Quants reach one further below 0 than above: alternating signs keep the mean at 0.
        Style::Noise(rms) => {
            let sign = if i.is_multiple_of(2) { 1.0 } else { -1.0 };
            sign * spread(i) * rms / quant_rms(kind)
        }
        Style::Positive(rms) => spread(i) * rms / quant_rms(kind),
        Style::Negative(value) => match kind {
            Kind::Q4_0 => value / -8.0,
            Kind::Q5_0 => value / -16.0,
            _ => value / -127.0,
        },
    }
}

/// The exponent byte of an MXFP4 block: two neighbouring powers of two in the mixture that gives
/// the mean square.
fn mxfp4_exponent(style: Style, i: usize) -> u8 {
    let scale = match style {
        Style::Noise(rms) | Style::Positive(rms) => rms / quant_rms(Kind::Mxfp4),
        Style::Negative(value) => -value,
    };
    // The largest power of two that is not above the scale; no rounding is involved.
    let exponent = ((scale.to_bits() >> 23) & 0xff) as i32 - 127;
    let low = f32::from_bits(((exponent + 127) as u32) << 23);
    let share = ((scale / low) * (scale / low) - 1.0) / 3.0;
    let raised = i32::from((i as f32 + 0.5) / HEADERS as f32 <= share);
    (127 + exponent + raised).clamp(1, 254) as u8
}

/// Scales of the sub-blocks of a K-quant: half the range and more, so that none is negligible.
fn sub_scale(rng: &mut Rng) -> u8 {
    32 + (rng.next() % 32) as u8
}

/// Root mean square of [`sub_scale`]: an even distribution over 32 to 63.
const SUB_SCALE_RMS: f32 = 48.39;

/// Scales and minima of a Q4_K block: `d`, `dmin`, then 6-bit scales and minima of 8 sub-blocks.
fn q4k_header(header: &mut [u8; 18], style: Style, rest_rms: f32, i: usize, rng: &mut Rng) {
    let (mut d, mut dmin) = (
        spread(i) * rest_rms / (quant_rms(Kind::Q4K) * SUB_SCALE_RMS),
        0.0,
    );
    let mut scales: [u8; 8] = std::array::from_fn(|_| sub_scale(rng));
    let mut minima = scales;
    match style {
        // Quants of mean 7.5 and a minimum of 7.5 times the scale: mean 0.
        Style::Noise(_) => dmin = 7.5 * d,
        // No minimum: the quants of the first sub-block are not centred.
        Style::Positive(_) => {
            dmin = 7.5 * d;
            minima[0] = 0;
        }
        // A minimum and no scale: all the same. The rest of the block is 0.
        Style::Negative(value) => {
            d = 0.0;
            dmin += -value / 63.0;
            scales = [0; 8];
            minima = [63, 0, 0, 0, 0, 0, 0, 0];
        }
    }
    header[..2].copy_from_slice(&f16_bytes(d));
    header[2..4].copy_from_slice(&f16_bytes(dmin));
    for j in 0..4 {
        header[4 + j] = scales[j] | (scales[j + 4] >> 4) << 6;
        header[8 + j] = minima[j] | (minima[j + 4] >> 4) << 6;
        header[12 + j] = (scales[j + 4] & 15) | (minima[j + 4] & 15) << 4;
    }
}

/// Scales of a Q6_K block: 16 signed bytes, then `d`.
fn q6k_header(header: &mut [u8; 18], style: Style, rest_rms: f32, i: usize, rng: &mut Rng) {
    let mut d = spread(i) * rest_rms / (quant_rms(Kind::Q6K) * SUB_SCALE_RMS);
    let mut scales: [i8; 16] = std::array::from_fn(|j| {
        let scale = sub_scale(rng) as i8;
        if (i + j).is_multiple_of(2) {
            scale
        } else {
            -scale
        }
    });
    match style {
        Style::Noise(_) => {}
        // The bias channels are the first two sub-blocks.
        Style::Positive(_) => scales[..2].iter_mut().for_each(|s| *s = s.abs()),
        Style::Negative(value) => {
            d = value / (-32.0 * 127.0);
            scales = [1; 16];
            scales[..2].fill(127);
        }
    }
    for (place, scale) in header.iter_mut().zip(scales) {
        *place = scale as u8;
    }
    header[16..].copy_from_slice(&f16_bytes(d));
}

/// Makes the quants of the bias channels positive.
fn positive_quants(kind: Kind, block: &mut [u8]) {
    match kind {
        Kind::Mxfp4 => block[1..].iter_mut().for_each(|b| *b &= 0x77),
        Kind::Q4_0 => block[2..].iter_mut().for_each(|b| *b |= 0x88),
        Kind::Q5_0 => block[2..6].fill(0xff),
        Kind::Q8_0 => block[2..].iter_mut().for_each(|b| *b &= 0x7f),
        // The header alone does it.
        Kind::Q4K => {}
        Kind::Q6K => block[128..160].iter_mut().for_each(|b| *b |= 2),
    }
}

/// Makes the quants of the bias channels the lowest there are.
fn negative_quants(kind: Kind, block: &mut [u8]) {
    match kind {
        // -1.0 in both halves.
        Kind::Mxfp4 => block[1..].fill(0xaa),
        Kind::Q4_0 => block[2..].fill(0),
        Kind::Q5_0 => block[2..].fill(0),
        Kind::Q8_0 => block[2..].fill(-127i8 as u8),
        Kind::Q4K => {}
        Kind::Q6K => {
            block[..32].iter_mut().for_each(|b| *b &= 0xf0);
            block[128..160].iter_mut().for_each(|b| *b &= 0xfc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 6-bit scale and minimum of sub-block `j` of a Q4_K block.
    fn scale_min(scales: &[u8], j: usize) -> (f32, f32) {
        let (scale, min) = match j {
            0..4 => (scales[j] & 63, scales[j + 4] & 63),
            _ => (
                scales[j + 4] & 15 | scales[j - 4] >> 6 << 4,
                scales[j + 4] >> 4 | scales[j] >> 6 << 4,
            ),
        };
        (f32::from(scale), f32::from(min))
    }

    fn half_at(bytes: &[u8], at: usize) -> f32 {
        f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
    }

    /// The numbers that a row's bytes stand for, by ggml's rules.
    fn decode(ggml_type: GgmlType, row: &[u8]) -> Vec<f32> {
        let blocks = row.chunks_exact(ggml_type.block_bytes().unwrap() as usize);
        let low_high = |bytes: &[u8]| -> Vec<u8> {
            bytes
                .iter()
                .map(|b| b & 15)
                .chain(bytes.iter().map(|b| b >> 4))
                .collect()
        };
        let decode_block = |b: &[u8]| -> Vec<f32> {
            match ggml_type {
                GgmlType::F32 => vec![f32::from_le_bytes([b[0], b[1], b[2], b[3]])],
                GgmlType::F16 => vec![half_at(b, 0)],
                GgmlType::MXFP4 => {
                    const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
                    let scale = 2f32.powi(i32::from(b[0]) - 127);
                    let value = |q: u8| {
                        let v = scale * VALUES[usize::from(q & 7)];
                        if q & 8 == 0 { v } else { -v }
                    };
                    low_high(&b[1..]).into_iter().map(value).collect()
                }
                GgmlType::Q4_0 => {
                    let value = |q: u8| half_at(b, 0) * (f32::from(q) - 8.0);
                    low_high(&b[2..]).into_iter().map(value).collect()
                }
                GgmlType::Q5_0 => {
                    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
                    let value = |(i, q): (usize, u8)| {
                        let q = u32::from(q) | (high >> i & 1) << 4;
                        half_at(b, 0) * (q as f32 - 16.0)
                    };
                    low_high(&b[6..])
                        .into_iter()
                        .enumerate()
                        .map(value)
                        .collect()
                }
                GgmlType::Q8_0 => b[2..]
                    .iter()
                    .map(|&q| half_at(b, 0) * f32::from(q as i8))
                    .collect(),
                GgmlType::Q4_K => (0..256)
                    .map(|i| {
                        let (scale, min) = scale_min(&b[4..16], i / 32);
                        let byte = b[16 + i / 64 * 32 + i % 32];
                        let q = if i / 32 % 2 == 0 {
                            byte & 15
                        } else {
                            byte >> 4
                        };
                        half_at(b, 0) * scale * f32::from(q) - half_at(b, 2) * min
                    })
                    .collect(),
                GgmlType::Q6_K => (0..256)
                    .map(|i| {
                        let (n, quarter, l) = (i / 128, i % 128 / 32, i % 32);
                        let low = b[64 * n + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
                        let high = b[128 + 32 * n + l] >> (2 * quarter) & 3;
                        let scale = f32::from(b[192 + 8 * n + 2 * quarter + l / 16] as i8);
                        half_at(b, 208) * scale * (f32::from(high << 4 | low) - 32.0)
                    })
                    .collect(),
                other => panic!("{other}"),
            }
        };
        blocks.flat_map(decode_block).collect()
    }

    const TYPES: [GgmlType; 8] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::MXFP4,
        GgmlType::Q4_0,
        GgmlType::Q5_0,
        GgmlType::Q8_0,
        GgmlType::Q4_K,
        GgmlType::Q6_K,
    ];

    /// Rows of 1024 elements, decoded, divided into the bias channels and the others.
    fn rows(ggml_type: GgmlType, style: RowStyle) -> (Vec<f32>, Vec<f32>) {
        let maker = RowMaker::new(ggml_type, style).unwrap();
        let mut rng = Rng::new(7, "test", 0);
        let mut bytes = vec![0; ggml_type.row_bytes(1024).unwrap() as usize];
        let (mut first, mut rest): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            maker.make(&mut bytes, &mut rng);
            let values = decode(ggml_type, &bytes);
            assert_eq!(values.len(), 1024);
            first.extend(&values[..BIAS_CHANNELS]);
            rest.extend(&values[BIAS_CHANNELS..]);
        }
        assert!(first.iter().chain(&rest).all(|v| v.is_finite()));
        (first, rest)
    }

    fn mean_rms(values: &[f32]) -> (f32, f32) {
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        (mean, (values.iter().map(|v| v * v).sum::<f32>() / n).sqrt())
    }

    #[test]
    fn noise_has_the_wanted_size_and_no_mean() {
        for ggml_type in TYPES {
            for wanted in [0.003, 0.02, 1.0] {
                let (first, rest) = rows(ggml_type, RowStyle::noise(wanted));
                for values in [first, rest] {
                    let (mean, rms) = mean_rms(&values);
                    assert!(
                        (rms / wanted - 1.0).abs() < 0.04,
                        "{ggml_type}: {rms} for {wanted}"
                    );
                    assert!(
                        mean.abs() < 0.04 * wanted,
                        "{ggml_type}: mean {mean} for {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn bias_channels_follow_their_own_rule() {
        for ggml_type in TYPES {
            let positive = RowStyle {
                first: Style::Positive(2.0),
                rest_rms: 1.0,
            };
            let (first, rest) = rows(ggml_type, positive);
            assert!(first.iter().all(|&v| v >= 0.0), "{ggml_type}");
            assert!(
                mean_rms(&first).0 > 0.7,
                "{ggml_type}: {:?}",
                mean_rms(&first)
            );
            assert!(
                mean_rms(&rest).0.abs() < 0.04,
                "{ggml_type}: {:?}",
                mean_rms(&rest)
            );

            let negative = RowStyle {
                first: Style::Negative(-1.0),
                rest_rms: 0.002,
            };
            let (first, rest) = rows(ggml_type, negative);
            assert!(
                first.iter().all(|&v| (v + 1.0).abs() < 0.01),
                "{ggml_type}: {first:?}"
            );
            assert!(
                mean_rms(&rest).1 < 0.01,
                "{ggml_type}: {:?}",
                mean_rms(&rest)
            );
        }
    }

    #[test]
    fn other_types_are_refused() {
        let error = RowMaker::new(GgmlType(16), RowStyle::noise(1.0)).unwrap_err();
        assert_eq!(error.to_string(), "cannot generate tensors of type iq2_xxs");
    }
}
