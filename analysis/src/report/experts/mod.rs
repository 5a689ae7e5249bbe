//! How unevenly experts are used, and what a cache of them would reach.

mod curves;
mod patterns;

use serde::{Deserialize, Serialize};

use super::choices::Choices;
use super::section::{Cell, Question, Section, Sheet};
use crate::simulate::{Usage, gini_of, top_quarter_of};
use crate::text::{percent, plural, share, size};

pub use curves::{Curve, CurvePoint};
pub use patterns::{Pair, Prediction};

/// The experts of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExpertLayer {
    /// Its number.
    pub layer: u32,
    /// Uses of each expert; one token is one use.
    pub uses: Vec<u64>,
    /// Experts that were never used.
    pub n_cold: u64,
    /// The fewest experts that together have half of the uses, most used first.
    pub hot: Vec<u32>,
    /// Gini coefficient of the uses: 0 for equal use, near 1 if one expert has all.
    pub gini: f64,
    /// Share of the uses that the most used quarter of the experts has.
    pub top_quarter_share: f64,
}

/// How likely an expert is used again some tokens later.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// So many tokens later, in the same sequence.
    pub tokens: u64,
    /// Share of the uses, 0 to 1.
    pub share: f64,
}

/// Skew within sequences.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PerSequence {
    /// Sequences that generated tokens.
    pub n: u64,
    /// Mean over sequences of the mean over layers.
    pub gini: f64,
    /// The same of the share of the most used quarter.
    pub top_quarter_share: f64,
}

/// How unevenly experts are used. All of it is about generated tokens, unless there are none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Experts {
    /// `decode`, or `prompt` where nothing was generated.
    pub phase: String,
    /// Tokens whose uses are counted.
    pub n_tokens: u64,
    /// Bytes of all experts.
    pub size_bytes: u64,
    /// Each layer that has experts.
    pub layers: Vec<ExpertLayer>,
    /// Mean over layers.
    pub gini: f64,
    /// Mean over layers.
    pub top_quarter_share: f64,
    /// `None` where nothing was generated.
    pub per_sequence: Option<PerSequence>,
    /// Tokens from which what follows comes: the first ones of the log, or all.
    pub n_kept_tokens: u64,
    /// How likely an expert is used again.
    pub lags: Vec<Lag>,
    /// Experts of a layer that are used together much more often than by chance.
    pub pairs: Vec<Pair>,
    /// Whether a layer's experts tell the next layer's.
    pub prediction: Option<Prediction>,
    /// Hits of a cache that all layers share, by its size.
    pub curves: Vec<Curve>,
    /// Bytes of experts that a token uses.
    pub bytes_per_token: Option<f64>,
}

impl Experts {
    /// `None` if the model has no experts.
    pub(crate) fn of(choices: &Choices<'_>) -> Option<Experts> {
        if choices.layers.is_empty() {
            return None;
        }
        let is_decode = choices.uses[1].iter().any(|uses| *uses > 0);
        let uses = &choices.uses[usize::from(is_decode)];
        let layers: Vec<ExpertLayer> = choices
            .layers
            .iter()
            .zip(choices.by_layer(uses))
            .map(|(experts, uses)| layer(experts.layer, uses))
            .collect();
        let mean =
            |of: fn(&ExpertLayer) -> f64| layers.iter().map(of).sum::<f64>() / layers.len() as f64;
        let n = choices.sequences.len() as u64;
        let over_sequences = |of: fn(&super::choices::SequenceUse) -> f64| {
            choices.sequences.iter().map(of).sum::<f64>() / n as f64
        };
        let workload = choices.workload();
        let usage = workload.as_ref().map(Usage::of);
        let used_bytes: f64 = choices
            .layers
            .iter()
            .zip(choices.by_layer(uses))
            .map(|(experts, uses)| experts.expert_bytes as f64 * uses.iter().sum::<u64>() as f64)
            .sum();
        let n_tokens = choices.n_tokens[usize::from(is_decode)];
        Some(Experts {
            phase: if is_decode { "decode" } else { "prompt" }.to_owned(),
            n_tokens,
            size_bytes: choices.size_bytes(),
            gini: mean(|layer| layer.gini),
            top_quarter_share: mean(|layer| layer.top_quarter_share),
            per_sequence: (n > 0 && is_decode).then(|| PerSequence {
                n,
                gini: over_sequences(|sequence| sequence.gini),
                top_quarter_share: over_sequences(|sequence| sequence.top_quarter),
            }),
            layers,
            n_kept_tokens: workload.as_ref().map_or(0, |w| w.n_tokens() as u64),
            lags: usage.map_or(Vec::new(), |usage| {
                let lag = |(tokens, share): &(usize, f64)| Lag {
                    tokens: *tokens as u64,
                    share: *share,
                };
                usage.repeat.iter().map(lag).collect()
            }),
            pairs: workload.as_ref().map_or(Vec::new(), patterns::pairs),
            prediction: workload.as_ref().and_then(patterns::predict),
            curves: workload.as_ref().map_or(Vec::new(), curves::curves),
            bytes_per_token: (n_tokens > 0).then(|| used_bytes / n_tokens as f64),
        })
    }

    fn curve_at(&self, policy: &str, share: f64) -> Option<&CurvePoint> {
        let curve = self.curves.iter().find(|curve| curve.policy == policy)?;
        let points = curve.points.iter();
        points
            .clone()
            .find(|point| (point.capacity_share - share).abs() < 0.01)
    }

    /// In words and tables.
    pub fn section(&self) -> Section {
        let mut section = Section::new(Question::Experts);
        if self.n_tokens == 0
            || self
                .layers
                .iter()
                .all(|layer| layer.uses.iter().all(|n| *n == 0))
        {
            section
                .cannot
                .push("how experts are used: no whole step of the log reads any".to_owned());
            return section;
        }
        let n_cold: u64 = self.layers.iter().map(|layer| layer.n_cold).sum();
        let n_experts: u64 = self
            .layers
            .iter()
            .map(|layer| layer.uses.len() as u64)
            .sum();
        section.find(format!(
            "In {} ({}), the most used quarter of a layer's experts has {} of the uses (Gini {:.3}); {} of {} were never used.",
            plural(self.n_tokens, "token"),
            self.phase,
            percent(self.top_quarter_share),
            self.gini,
            plural(n_cold, "expert"),
            n_experts,
        ));
        section.fact("gini", self.gini);
        section.fact("top_quarter_share", self.top_quarter_share);
        section.fact("experts_never_used_share", share(n_cold, n_experts));
        if let Some(per) = self.per_sequence.filter(|per| per.n > 1) {
            section.find(format!(
                "Within one of the {} the quarter has {} (Gini {:.3}).",
                plural(per.n, "sequence"),
                percent(per.top_quarter_share),
                per.gini
            ));
            section.fact("sequence_gini", per.gini);
        }
        self.order(&mut section);
        self.cache(&mut section);
        section.table("Layers", self.layers_sheet());
        section.table("Hits of a shared cache", self.curves_sheet());
        section.table("Experts used together", self.pairs_sheet());
        let columns = [("tokens later", "lag_tokens"), ("used again", "share")];
        let cells = |lag: &Lag| vec![Cell::Count(lag.tokens), Cell::Share(lag.share)];
        section.table(
            "Used again",
            Sheet::new(&columns, self.lags.iter().map(cells)),
        );
        section
    }

    fn order(&self, section: &mut Section) {
        if self.phase == "prompt" {
            section.cannot.push(
                "in which order experts are used, and what a cache of them would reach: nothing was generated"
                    .to_owned(),
            );
        }
        if let (Some(first), Some(last)) = (self.lags.first(), self.lags.last()) {
            section.find(format!(
                "An expert that a token uses is used by the next one with {}, by the one {} later with {}.",
                percent(first.share),
                plural(last.tokens, "token"),
                percent(last.share)
            ));
            section.fact("used_again_next_token_share", first.share);
        }
        if let Some(prediction) = &self.prediction {
            section.find(format!(
                "A layer's experts tell {} of the next layer's; guessing its most used ones tells {}, chance {}.",
                percent(prediction.recall),
                percent(prediction.popularity_recall),
                percent(prediction.chance)
            ));
            section.fact("next_layer_recall", prediction.recall);
        }
    }

    fn cache(&self, section: &mut Section) {
        let at = |policy| self.curve_at(policy, 0.5);
        if let (Some(lru), Some(lfu), Some(best)) = (at("lru"), at(curves::DECAYED), at("belady")) {
            section.find(format!(
                "A shared cache of half of the experts ({}) would hit {} under LRU, {} under LFU with decay, and at best {}.",
                size(lru.capacity_bytes),
                percent(lru.hit_share),
                percent(lfu.hit_share),
                percent(best.hit_share),
            ));
            section.fact("half_cache_lru_hit_share", lru.hit_share);
            section.fact("half_cache_lfu_hit_share", lfu.hit_share);
            section.fact("half_cache_belady_hit_share", best.hit_share);
        }
        if let Some(pinned) = self.curve_at("pinned", 0.25) {
            section.find(format!(
                "Pinning the quarter that is used most ({}) would save {} of the reads of experts{}.",
                size(pinned.capacity_bytes),
                percent(pinned.hit_share),
                self.bytes_per_token.map_or(String::new(), |bytes| {
                    format!(", {} a token", size((bytes * pinned.hit_share) as u64))
                })
            ));
            section.fact("pinned_quarter_hit_share", pinned.hit_share);
        }
        if self.n_kept_tokens > 0 && self.n_kept_tokens < self.n_tokens && self.phase == "decode" {
            section.cannot.push(format!(
                "lags, predictions and caches for all tokens: they are those of the first {}",
                plural(self.n_kept_tokens, "token")
            ));
        }
    }

    fn layers_sheet(&self) -> Sheet {
        let columns = [
            ("layer", "layer"),
            ("experts", "n_experts"),
            ("never used", "n_cold"),
            ("with half of the uses", "n_hot"),
            ("Gini", "gini"),
            ("top quarter", "top_quarter_share"),
            ("hottest", "hottest"),
        ];
        let rows = self.layers.iter().map(|layer| {
            let hottest: Vec<String> = layer.hot.iter().take(8).map(u32::to_string).collect();
            vec![
                Cell::Count(u64::from(layer.layer)),
                Cell::Count(layer.uses.len() as u64),
                Cell::Count(layer.n_cold),
                Cell::Count(layer.hot.len() as u64),
                Cell::Number(layer.gini),
                Cell::Share(layer.top_quarter_share),
                Cell::Text(hottest.join(" ")),
            ]
        });
        Sheet::new(&columns, rows)
    }

    fn curves_sheet(&self) -> Sheet {
        let columns = [
            ("policy", "policy"),
            ("cache", "capacity_share"),
            ("size", "capacity_bytes"),
            ("hits", "hit_share"),
            ("missed per token", "miss_bytes_per_token"),
        ];
        let rows = self.curves.iter().flat_map(|curve| {
            curve.points.iter().map(|point| {
                vec![
                    Cell::from(&curve.policy),
                    Cell::Share(point.capacity_share),
                    Cell::Bytes(point.capacity_bytes),
                    Cell::Share(point.hit_share),
                    Cell::Bytes(point.miss_bytes_per_token as u64),
                ]
            })
        });
        Sheet::new(&columns, rows)
    }

    fn pairs_sheet(&self) -> Sheet {
        let columns = [
            ("layer", "layer"),
            ("expert", "a"),
            ("and", "b"),
            ("together", "n"),
            ("times as often as by chance", "lift"),
        ];
        let cells = |pair: &Pair| {
            vec![
                Cell::Count(u64::from(pair.layer)),
                Cell::Count(u64::from(pair.a)),
                Cell::Count(u64::from(pair.b)),
                Cell::Count(pair.n),
                Cell::Number(pair.lift),
            ]
        };
        Sheet::new(&columns, self.pairs.iter().map(cells))
    }
}

fn layer(layer: u32, uses: &[u64]) -> ExpertLayer {
    let mut ascending = uses.to_vec();
    ascending.sort_unstable();
    let mut by_use: Vec<u32> = (0..uses.len() as u32).collect();
    by_use.sort_by_key(|expert| std::cmp::Reverse(uses[*expert as usize]));
    let total: u64 = uses.iter().sum();
    let mut so_far = 0;
    let hot = by_use.into_iter().take_while(|expert| {
        let is_needed = so_far * 2 < total;
        so_far += uses[*expert as usize];
        is_needed
    });
    ExpertLayer {
        layer,
        hot: hot.collect(),
        n_cold: uses.iter().filter(|n| **n == 0).count() as u64,
        gini: gini_of(&ascending),
        top_quarter_share: top_quarter_of(&ascending),
        uses: uses.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_experts_have_half_of_the_uses() {
        let layer = layer(3, &[1, 10, 0, 4, 5]);
        assert_eq!((layer.hot.as_slice(), layer.n_cold), (&[1][..], 1));
        let even = super::layer(0, &[2, 2, 2]);
        assert_eq!(even.hot, [0, 1]);
        assert_eq!(super::layer(0, &[0, 0]).hot, Vec::<u32>::new());
    }
}
