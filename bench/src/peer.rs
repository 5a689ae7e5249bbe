//! `--baseline-cmd`: any other program, under the same conditions.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use regex::Regex;

/// Generation speed in the words of llama.cpp and its relatives.
pub(crate) const DEFAULT_REGEX: &str = r":\s+eval time\s*=.*?([0-9.]+) tokens per second";
const PLACES: [&str; 4] = ["{model}", "{tokens}", "{prompt_tokens}", "{threads}"];

/// A program and where its figure is.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    template: String,
    figure: Regex,
}

/// What goes into the places of a template.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Values<'a> {
    pub(crate) model: &'a Path,
    pub(crate) n_gen: u32,
    pub(crate) n_prompt: u32,
    pub(crate) n_threads: u32,
}

impl Peer {
    /// From `NAME=COMMAND` and a regular expression whose first group is tokens per second.
    pub(crate) fn new(definition: &str, regex: &str) -> Result<Peer> {
        let Some((name, template)) = definition.split_once('=') else {
            bail!("`{definition}` is not NAME=COMMAND");
        };
        let (name, template) = (name.trim(), template.trim());
        if name.is_empty() || template.is_empty() || ["faultline", "stock"].contains(&name) {
            bail!(
                "`{definition}`: expected NAME=COMMAND, with a name other than faultline and stock"
            );
        }
        if !template.contains("{model}") {
            bail!(
                "`{template}` does not say where the model goes; places are {}",
                PLACES.join(", ")
            );
        }
        let figure =
            Regex::new(regex).with_context(|| format!("`{regex}` is not a regular expression"))?;
        if figure.captures_len() < 2 {
            bail!("`{regex}` has no group for the figure, such as `([0-9.]+) tokens per second`");
        }
        Ok(Peer {
            name: name.to_string(),
            template: template.to_string(),
            figure,
        })
    }

    /// The command, run by `sh`, which first enters the memory group of `procs`.
    pub(crate) fn command(&self, values: Values<'_>, procs: Option<&Path>) -> Command {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let filled = [
            quoted(&values.model.to_string_lossy()),
            values.n_gen.to_string(),
            values.n_prompt.to_string(),
            values.n_threads.to_string(),
        ];
        let mut line = self.template.clone();
        for (place, value) in PLACES.iter().zip(filled) {
            line = line.replace(place, &value);
        }
        let mut command = Command::new("sh");
        command.arg("-c");
        match procs {
            Some(procs) => command.arg(r#"echo 0 > "$1" && eval "$2""#).args([
                "sh".as_ref(),
                procs.as_os_str(),
                line.as_ref(),
            ]),
            None => command.arg(line),
        };
        command.stdin(std::process::Stdio::null());
        command
    }

    /// The last figure in what the program wrote, in tokens per second.
    pub(crate) fn tokens_per_s(&self, output: &str) -> Result<f64> {
        let found = self
            .figure
            .captures_iter(output)
            .last()
            .and_then(|found| found.get(1));
        let Some(found) = found else {
            bail!(
                "`{}` is not in the output of {}; --baseline-regex names another figure",
                self.figure,
                self.name
            );
        };
        match found.as_str().parse() {
            Ok(rate) if rate > 0.0 && f64::is_finite(rate) => Ok(rate),
            _ => bail!("{}: `{}` is not a speed", self.name, found.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERF: &str = "\
        llama_perf_context_print:        load time =    5000.00 ms\n\
        llama_perf_context_print: prompt eval time =     100.00 ms /    16 tokens (    6.25 ms per token,   160.00 tokens per second)\n\
        llama_perf_context_print:        eval time =    1000.00 ms /    24 runs   (   41.67 ms per token,    24.00 tokens per second)\n";

    #[test]
    fn the_default_figure_is_llama_cpps() {
        let peer = Peer::new("peer=run {model}", DEFAULT_REGEX).unwrap();
        assert_eq!(peer.tokens_per_s(PERF).unwrap(), 24.0);
        let message = peer.tokens_per_s("nothing").unwrap_err().to_string();
        assert!(
            message.contains("peer") && message.contains("--baseline-regex"),
            "{message}"
        );
    }

    #[test]
    fn places_are_filled_and_quoted() {
        let peer = Peer::new(
            "p=printf '%s|' {model} {tokens} {prompt_tokens} {threads}",
            "(x)",
        )
        .unwrap();
        let values = Values {
            model: Path::new("it's a model"),
            n_gen: 3,
            n_prompt: 2,
            n_threads: 1,
        };
        let folder = tempfile::tempdir().unwrap();
        let procs = folder.path().join("cgroup.procs");
        for procs in [None, Some(procs.as_path())] {
            let output = peer.command(values, procs).output().unwrap();
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                "it's a model|3|2|1|"
            );
        }
        assert_eq!(std::fs::read_to_string(procs).unwrap(), "0\n");
    }

    #[test]
    fn nonsense_is_refused() {
        for (definition, regex, word) in [
            ("run {model}", "(x)", "NAME=COMMAND"),
            ("=run {model}", "(x)", "NAME=COMMAND"),
            ("stock=run {model}", "(x)", "other than"),
            ("p=run", "(x)", "{model}"),
            ("p=run {model}", "(", "regular expression"),
            ("p=run {model}", "x", "group"),
        ] {
            let message = format!("{:#}", Peer::new(definition, regex).unwrap_err());
            assert!(message.contains(word), "{message}");
        }
    }
}
