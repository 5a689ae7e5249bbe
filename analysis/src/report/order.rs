//! In which order the files are read: by operations, by faults, and from the device.

use serde::{Deserialize, Serialize};
use tracer::MARK_PAGE_BYTES;

use super::delivered::Delivered;
use super::section::{Cell, Question, Section, Sheet};
use super::sequence::{Layout, Order, Sequences};
use super::tally::Tally;
use super::times::{Durations, Times};
use super::weights::Model;
use crate::text::{count, duration, percent, plural, share, size};

/// One way to look at the order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// `accesses`, `page faults`, `major faults`, `block reads`; those `on the device` count places there.
    pub name: String,
    /// The sequence.
    pub order: Order,
    /// Bytes of the files (pages, for faults and block reads) that were asked for at least once, if that is counted.
    pub covered_bytes: Option<u64>,
}

/// Requests of one size to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestSize {
    /// At least this large, and less than twice as large.
    pub from_bytes: u64,
    /// How many.
    pub n: u64,
}

/// Requests to the device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// By size.
    pub sizes: Vec<RequestSize>,
    /// From the first request to the end of the last.
    pub span_ns: u64,
    /// All bytes, divided by that time.
    pub bytes_per_second: f64,
    /// From issue to completion; `None` if no completion was seen.
    pub latency: Option<Durations>,
    /// Requests whose completion was not seen.
    pub n_unfinished: u64,
    /// Groups of requests that are issued less than 1 ms after each other.
    pub n_bursts: u64,
    /// The largest of them.
    pub largest_burst_bytes: u64,
    /// When it began.
    pub largest_burst_at_ns: u64,
}

/// In which order the files are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrderAnswer {
    /// All views that the log has.
    pub views: Vec<View>,
    /// Size of the files.
    pub file_bytes: u64,
    /// Pieces of the files that lie apart on the device; `None` if that is not known.
    pub n_pieces: Option<u64>,
    /// `None` if the log has no reads of the device.
    pub requests: Option<Requests>,
    /// Whether the log has page faults.
    pub has_faults: bool,
}

impl OrderAnswer {
    pub(crate) fn of(
        model: &Model,
        tally: &Tally<'_>,
        delivered: &Delivered<'_>,
        sequences: &Sequences<'_>,
        times: &Times<'_>,
        layout: Option<&Layout>,
    ) -> OrderAnswer {
        let file_tensors = (0..model.weights.len()).filter(|id| model.weights[*id].file.is_some());
        let touched_bytes = file_tensors.map(|id| tally.touched_bytes(id)).sum();
        let pages = |n: u64| n * MARK_PAGE_BYTES;
        let all = [
            ("accesses", &sequences.accesses, Some(touched_bytes)),
            (
                "accesses on the device",
                &sequences.accesses_on_device,
                None,
            ),
            (
                "page faults",
                &sequences.faults,
                Some(pages(delivered.fault_pages.n_set)),
            ),
            ("major faults", &sequences.major_faults, None),
            (
                "block reads",
                &sequences.block_reads,
                Some(pages(delivered.delivered_pages.n_set)),
            ),
            (
                "block reads on the device",
                &sequences.block_reads_on_device,
                None,
            ),
        ];
        let views = all
            .into_iter()
            .filter(|(_, follow, _)| follow.order.n > 0)
            .map(|(name, follow, covered_bytes)| View {
                name: name.to_owned(),
                order: follow.order,
                covered_bytes,
            });
        OrderAnswer {
            views: views.collect(),
            file_bytes: model.file_bytes(),
            n_pieces: layout.map(Layout::n_pieces),
            requests: delivered.has_block.then(|| requests(sequences, times)),
            has_faults: delivered.has_faults,
        }
    }

    fn view(&self, name: &str) -> Option<&View> {
        self.views.iter().find(|view| view.name == name)
    }

    /// In words and tables.
    pub fn section(&self) -> Section {
        let mut section = Section::new(Question::Order);
        let names = [
            (
                "accesses",
                "Operations read in the order of the file",
                "access",
            ),
            (
                "accesses on the device",
                "With the file's pieces as they lie on the device",
                "access_device",
            ),
            ("page faults", "Page faults", "fault"),
            (
                "block reads",
                "Requests to the device, in the order of the file",
                "block",
            ),
            (
                "block reads on the device",
                "Requests to the device, by their place there",
                "block_device",
            ),
        ];
        for (name, words, fact) in names {
            let Some(view) = self.view(name) else {
                continue;
            };
            let (gaps, bytes) = (&view.order.gaps, &view.order.gap_bytes);
            let (sequential, backward) = (
                share(gaps.sequential, gaps.total()),
                share(gaps.backward, gaps.total()),
            );
            section.find(format!(
                "{words}: {} of {} continue where the one before ended ({} of the bytes), {} go backward.",
                percent(sequential),
                count(gaps.total()),
                percent(share(bytes.sequential, bytes.total())),
                percent(backward),
            ));
            section.fact(format!("{fact}_sequential_share"), sequential);
            section.fact(format!("{fact}_backward_share"), backward);
            if let Some(covered) = view.covered_bytes {
                section.fact(
                    format!("{fact}_covered_share"),
                    share(covered, self.file_bytes),
                );
            }
        }
        match self.n_pieces {
            Some(1) => section.find("The files lie in one piece on the device.".to_owned()),
            Some(n) => section.find(format!("The files lie in {} on the device.", plural(n, "piece"))),
            None => section.cannot.push(
                "where reads are on the device: the model's files as recorded are not at hand, or their file system \
                 does not tell; name the model with --model"
                    .to_owned(),
            ),
        }
        self.device(&mut section);
        section.table("Gaps between reads", self.sheet());
        if let Some(requests) = &self.requests {
            let columns = [("from", "from_bytes"), ("requests", "n")];
            let rows = requests.sizes.iter();
            let cells =
                |size: &RequestSize| vec![Cell::Bytes(size.from_bytes), Cell::Count(size.n)];
            section.table("Sizes of requests", Sheet::new(&columns, rows.map(cells)));
        }
        section
    }

    fn device(&self, section: &mut Section) {
        if !self.has_faults {
            section.cannot.push(
                "the order of page faults: the log has none; record with --faults".to_owned(),
            );
        }
        let Some(requests) = &self.requests else {
            section.cannot.push(
                "request sizes, throughput and latency: the log has no reads of the device; record with --block"
                    .to_owned(),
            );
            return;
        };
        let rate = size(requests.bytes_per_second as u64);
        section.find(format!(
            "The device delivered {rate}/s over {}, in {}; the largest had {}.",
            duration(requests.span_ns),
            plural(requests.n_bursts, "burst"),
            size(requests.largest_burst_bytes),
        ));
        section.fact("device_bytes_per_second", requests.bytes_per_second);
        if let Some(latency) = &requests.latency {
            section.find(format!(
                "A request took {} (median of {}; shortest {}, 99 % within {}, longest {}).",
                duration(latency.median_ns),
                count(latency.n),
                duration(latency.min_ns),
                duration(latency.p99_ns),
                duration(latency.max_ns),
            ));
            section.fact("latency_min_ns", latency.min_ns as f64);
            section.fact("latency_median_ns", latency.median_ns as f64);
            section.fact("latency_p99_ns", latency.p99_ns as f64);
            section.fact("latency_max_ns", latency.max_ns as f64);
        }
        if requests.n_unfinished > 0 {
            section.cannot.push(format!(
                "how long {} took: their completion was not seen",
                plural(requests.n_unfinished, "request")
            ));
        }
    }

    fn sheet(&self) -> Sheet {
        let columns = [
            ("sequence", "sequence"),
            ("reads", "n"),
            ("bytes", "size_bytes"),
            ("runs", "n_runs"),
            ("sequential (< 4 KiB)", "sequential"),
            ("small (< 128 KiB)", "small"),
            ("medium (< 8 MiB)", "medium"),
            ("large", "large"),
            ("backward", "backward"),
            ("elsewhere", "elsewhere"),
            ("of the bytes, sequential", "sequential_bytes"),
            ("of the bytes, backward", "backward_bytes"),
            ("of the files", "covered_share"),
        ];
        let rows = self.views.iter().map(|view| {
            let (gaps, bytes) = (&view.order.gaps, &view.order.gap_bytes);
            vec![
                Cell::from(&view.name),
                Cell::Count(view.order.n),
                Cell::Bytes(view.order.size_bytes),
                Cell::Count(view.order.n_runs),
                Cell::Count(gaps.sequential),
                Cell::Count(gaps.small),
                Cell::Count(gaps.medium),
                Cell::Count(gaps.large),
                Cell::Count(gaps.backward),
                Cell::Count(gaps.elsewhere),
                Cell::Bytes(bytes.sequential),
                Cell::Bytes(bytes.backward),
                view.covered_bytes.map_or(Cell::None, |bytes| {
                    Cell::Share(share(bytes, self.file_bytes))
                }),
            ]
        });
        Sheet::new(&columns, rows)
    }
}

fn requests(sequences: &Sequences<'_>, times: &Times<'_>) -> Requests {
    let sizes = (0..).zip(times.request_sizes).filter(|(_, n)| *n > 0);
    let (begin, end) = times.block_span_ns.unwrap_or_default();
    let span_ns = end - begin;
    let total = sequences.block_reads.order.size_bytes;
    Requests {
        sizes: sizes
            .map(|(power, n)| RequestSize {
                from_bytes: 1 << power,
                n,
            })
            .collect(),
        span_ns,
        bytes_per_second: total as f64 * 1e9 / span_ns.max(1) as f64,
        latency: times.latencies.durations(),
        n_unfinished: times.n_unfinished,
        n_bursts: times.bursts.n,
        largest_burst_bytes: times.bursts.largest_bytes,
        largest_burst_at_ns: times.bursts.largest_at_ns,
    }
}
