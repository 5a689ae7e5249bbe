//! Reads are right before they are timed.

use std::os::unix::fs::FileExt as _;

use rustix::fs::Advice;

use super::{LARGE_DEPTH, MeasureError, Measurement, Permutation, Read, Source, content, mix};

/// Reads of each size that are compared.
const N_READS: u64 = 8;

impl Measurement<'_> {
    /// Compares reads of every size with what the file has: in the temporary file that follows from the offset, in any
    /// other it is what a buffered read gives.
    pub(super) fn verify(&mut self) -> Result<(), MeasureError> {
        for size in self.options.sizes.clone() {
            if (self.stop)() {
                return Err(MeasureError::Interrupted);
            }
            let blocks = self.place.size_bytes / size;
            let order = Permutation::new(blocks.max(1), mix(self.options.seed ^ !size));
            let mut offsets = (0..blocks.min(N_READS)).map(|index| order.at(index) * size);
            let mut read = Vec::new();
            self.engine
                .run(
                    size,
                    // The memory was made for the deepest queue of the largest requests.
                    self.options.depths[self.options.depths.len() - 1].min(LARGE_DEPTH),
                    &mut || offsets.next(),
                    &mut |done: &Read<'_>| read.push((done.offset, done.bytes.to_vec())),
                )
                .map_err(|failure| failure.of(&self.place.path))?;
            let expected = self.expected(&read)?;
            let wrong = read
                .iter()
                .zip(&expected)
                .find(|((_, bytes), expected)| bytes != *expected);
            if let Some(((offset, _), _)) = wrong {
                return Err(MeasureError::Wrong {
                    path: self.place.path.clone(),
                    offset: *offset,
                    request_bytes: size,
                    engine: self.engine.description(),
                });
            }
        }
        Ok(())
    }

    fn expected(&self, read: &[(u64, Vec<u8>)]) -> Result<Vec<Vec<u8>>, MeasureError> {
        let mut expected: Vec<Vec<u8>> =
            read.iter().map(|(_, bytes)| vec![0; bytes.len()]).collect();
        let pairs = read.iter().map(|(offset, _)| *offset).zip(&mut expected);
        match self.source {
            Source::Temporary { .. } => {
                pairs.for_each(|(offset, bytes)| content::fill(bytes, offset, self.options.seed));
            }
            Source::File(path) => {
                let file = std::fs::File::open(path)
                    .map_err(|error| MeasureError::io(path, "open", error))?;
                // Without readahead; and the pages are of no use to anybody afterwards.
                let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
                for (offset, bytes) in pairs {
                    file.read_exact_at(bytes, offset)
                        .map_err(|error| MeasureError::io(path, "read", error))?;
                    let len = std::num::NonZeroU64::new(bytes.len() as u64);
                    let _ = rustix::fs::fadvise(&file, offset, len, Advice::DontNeed);
                }
            }
        }
        Ok(expected)
    }
}

#[cfg(test)]
mod tests {
    use super::super::place::Place;
    use super::super::ring::Region;
    use super::*;
    use crate::measure::Options;

    #[test]
    fn wrong_bytes_are_found_by_both_engines() {
        let folder = tempfile::tempdir().unwrap();
        let source = Source::Temporary {
            folder: folder.path().to_owned(),
            size_bytes: 1 << 20,
        };
        for (io_uring, seed, right) in [(true, 1, true), (true, 2, false), (false, 2, false)] {
            let mut region = Region::new(8 << 20).unwrap();
            let file = content::temporary(folder.path(), 1 << 20, 1, &|| false).unwrap();
            let place = Place::temporary(file, folder.path(), &mut region).unwrap();
            let options = Options {
                sizes: vec![4096],
                depths: vec![4],
                seconds: 1.0,
                repetitions: 5,
                seed,
                warm_up: false,
                io_uring,
            };
            let mut measurement =
                Measurement::new(place, &source, options, region, &|| false).unwrap();
            match measurement.verify() {
                Ok(()) => assert!(right),
                Err(MeasureError::Wrong { request_bytes, .. }) => {
                    assert_eq!((request_bytes, right), (4096, false));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}
