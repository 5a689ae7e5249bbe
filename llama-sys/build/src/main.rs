//! `llama-build`: trees, tools and reference programs from the command line. Paths of results go to standard output.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use llama_build::config::{Config, Patching, find_root};
use llama_build::patch::{self, Series};
use llama_build::{Error, Result, prepare, source};

const USAGE: &str = "\
Builds the pinned llama.cpp, with or without the patch series.

usage: llama-build COMMAND [OPTIONS]

commands:
  tree           copies the source to --out, a new folder
  tools          builds upstream's tools under --out and prints their paths
  reference      compiles one C++ program against the libraries under --out and prints its path
  refresh-sums   writes SHA256SUMS of the files that the patch series touches
  check-patches  checks that the series is complete, applies and matches SHA256SUMS

options of tree, tools and reference:
  --patched | --unpatched   with or without the series
  --out DIR                 where to work; tools and reference default to $LLAMA_SYS_BUILD_DIR
  --tool NAME               tools: which one, may be repeated (default: llama-bench)
  --source FILE             reference: the C++ file
  --name NAME               reference: name of the program (default: the name of the file)

environment: LLAMA_SYS_SOURCE, LLAMA_SYS_PATCHES, LLAMA_SYS_BUILD_DIR, LLAMA_SYS_NATIVE, CC, CXX
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args_os()
        .skip(1)
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let command = match Command::parse(&arguments) {
        Ok(Some(command)) => command,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("llama-build: {message}\nsee llama-build --help");
            return ExitCode::from(2);
        }
    };
    match command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("llama-build: {error}");
            match error {
                Error::BadCombination(_) | Error::BadEnv { .. } => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// A command line that makes sense.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Tree {
        patching: Patching,
        out: PathBuf,
    },
    Tools {
        patching: Patching,
        out: PathBuf,
        names: Vec<String>,
    },
    Reference {
        patching: Patching,
        out: PathBuf,
        source: PathBuf,
        name: String,
    },
    RefreshSums,
    CheckPatches,
}

impl Command {
    /// `None` asks for help.
    fn parse(arguments: &[String]) -> Result<Option<Command>, String> {
        let mut rest = arguments.iter();
        let command = match rest.next().map(String::as_str) {
            None => return Err("no command is given".to_owned()),
            Some("-h" | "--help" | "help") => return Ok(None),
            Some(command) => command,
        };
        let (mut patching, mut out, mut names, mut source, mut name) =
            (None, None, Vec::new(), None, None);
        while let Some(option) = rest.next() {
            let allowed: &[&str] = match option.as_str() {
                "-h" | "--help" => return Ok(None),
                "--patched" | "--unpatched" | "--out" => &["tree", "tools", "reference"],
                "--tool" => &["tools"],
                "--source" | "--name" => &["reference"],
                _ => &[],
            };
            if !allowed.contains(&command) {
                return Err(format!("{command}: unknown option {option}"));
            }
            let mut value = || {
                rest.next()
                    .cloned()
                    .ok_or_else(|| format!("{option} needs a value"))
            };
            match option.as_str() {
                "--patched" => patching = Some(Patching::Patched),
                "--unpatched" => patching = Some(Patching::Unpatched),
                "--out" => out = Some(PathBuf::from(value()?)),
                "--tool" => names.push(value()?),
                "--source" => source = Some(PathBuf::from(value()?)),
                _ => name = Some(value()?),
            }
        }
        let patching = patching.ok_or_else(|| format!("{command}: say --patched or --unpatched"));
        let shared = env::var_os("LLAMA_SYS_BUILD_DIR")
            .filter(|value| !value.is_empty())
            .map(PathBuf::from);
        let workdir = out
            .clone()
            .or(shared)
            .ok_or_else(|| format!("{command}: --out is missing"));
        match command {
            "tree" => {
                let out = out.ok_or("tree: --out is missing")?;
                Ok(Some(Command::Tree {
                    patching: patching?,
                    out,
                }))
            }
            "tools" => {
                if names.is_empty() {
                    names.push("llama-bench".to_owned());
                }
                Ok(Some(Command::Tools {
                    patching: patching?,
                    out: workdir?,
                    names,
                }))
            }
            "reference" => {
                let source = source.ok_or("reference: --source is missing")?;
                let name = match name {
                    Some(name) => name,
                    None => source
                        .file_stem()
                        .unwrap_or_default()
                        .to_string_lossy()
                        .into_owned(),
                };
                Ok(Some(Command::Reference {
                    patching: patching?,
                    out: workdir?,
                    source,
                    name,
                }))
            }
            "refresh-sums" => Ok(Some(Command::RefreshSums)),
            "check-patches" => Ok(Some(Command::CheckPatches)),
            other => Err(format!("unknown command {other}")),
        }
    }

    fn run(self) -> Result<()> {
        let mut config = Config::for_host(&find_root()?)?;
        config.verbose = true;
        match self {
            Command::Tree { patching, out } => tree(&config, patching, &absolute(&out)?),
            Command::Tools {
                patching,
                out,
                names,
            } => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                for path in llama_build::tools(&config, patching, &absolute(&out)?, &names)? {
                    println!("{}", path.display());
                }
                Ok(())
            }
            Command::Reference {
                patching,
                out,
                source,
                name,
            } => {
                let program =
                    llama_build::reference(&config, patching, &absolute(&out)?, &source, &name)?;
                println!("{}", program.display());
                Ok(())
            }
            Command::RefreshSums => {
                let series = Series::load(&config.patches)?;
                let overlay = patch::apply(&source::locate(&config)?, &series)?;
                patch::write_sums(&series, &overlay)?;
                println!("{}", series.sums_file().display());
                Ok(())
            }
            Command::CheckPatches => {
                let series = Series::load(&config.patches)?;
                let overlay = patch::apply(&source::locate(&config)?, &series)?;
                patch::check(&series, &overlay)?;
                eprintln!(
                    "{} patches apply, {} files match {}, digest {}",
                    series.patches().len(),
                    overlay.iter().count(),
                    patch::SUMS_FILE,
                    series.digest()
                );
                Ok(())
            }
        }
    }
}

/// A folder that holds something is left alone: it may be a tree in which somebody works.
fn tree(config: &Config, patching: Patching, out: &Path) -> Result<()> {
    let taken = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => out.exists(),
    };
    if taken {
        return Err(Error::BadCombination(format!(
            "{} exists already: name a new folder",
            out.display()
        )));
    }
    let tree = prepare(config, patching, out)?;
    for warning in &tree.warnings {
        eprintln!("llama-build: {warning}");
    }
    println!("{}", tree.path.display());
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|source| Error::Io {
        what: "resolve",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Command>, String> {
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Command::parse(&arguments)
    }

    #[test]
    fn commands() {
        assert_eq!(parse("--help"), Ok(None));
        assert_eq!(parse("tools --help"), Ok(None));
        assert_eq!(parse("check-patches"), Ok(Some(Command::CheckPatches)));
        assert_eq!(
            parse("tree --unpatched --out x"),
            Ok(Some(Command::Tree {
                patching: Patching::Unpatched,
                out: "x".into()
            }))
        );
        assert_eq!(
            parse("tools --patched --out x"),
            Ok(Some(Command::Tools {
                patching: Patching::Patched,
                out: "x".into(),
                names: vec!["llama-bench".to_owned()]
            }))
        );
        assert_eq!(
            parse("reference --patched --out x --source a/b.cpp"),
            Ok(Some(Command::Reference {
                patching: Patching::Patched,
                out: "x".into(),
                source: "a/b.cpp".into(),
                name: "b".to_owned()
            }))
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("", "no command"),
            ("make", "unknown command make"),
            ("tree --out x", "--patched or --unpatched"),
            ("tree --patched", "--out is missing"),
            ("tree --patched --tool x", "unknown option --tool"),
            ("tools --patched --out", "--out needs a value"),
            ("reference --patched --out x", "--source is missing"),
            ("check-patches --out x", "unknown option --out"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(part), "{line}: {message}");
        }
    }
}
