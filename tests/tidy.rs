//! Rules that hold for every file of the repository. A rule that a machine can check is not left to review.

use std::fs;
use std::path::{Path, PathBuf};

const SOURCE_LINES_MAX: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A text file of the repository: its path from the root, with slashes, and its contents.
struct Text {
    name: String,
    contents: String,
}

impl Text {
    fn has_extension(&self, extensions: &[&str]) -> bool {
        extensions
            .iter()
            .any(|extension| self.name.ends_with(&format!(".{extension}")))
    }

    /// Lines that this project wrote: of a patch only the added ones, of a lock file none.
    fn own_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let patch = self.has_extension(&["patch"]);
        let lock = self.has_extension(&["lock"]);
        self.contents
            .lines()
            .enumerate()
            .filter(move |(_, line)| !lock && (!patch || line.starts_with('+')))
            .map(|(index, line)| (index + 1, line))
    }
}

fn texts() -> Vec<Text> {
    let mut files = Vec::new();
    walk(root(), &mut files);
    let texts: Vec<Text> = files
        .into_iter()
        .filter_map(|path| {
            let name = path
                .strip_prefix(root())
                .unwrap()
                .to_string_lossy()
                .replace('\\', "/");
            fs::read_to_string(&path)
                .ok()
                .map(|contents| Text { name, contents })
        })
        .collect();
    assert!(texts.len() > 30, "only {} files found", texts.len());
    texts
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
    {
        let entry = entry.unwrap();
        let name = entry.file_name();
        let kind = entry.file_type().unwrap();
        // Git's own: a folder, or in a linked work tree a file.
        if name == ".git" {
            continue;
        }
        if kind.is_dir() {
            // A folder with this tag is a cache, such as Cargo's target folder wherever it is.
            if name != "target" && !entry.path().join("CACHEDIR.TAG").exists() {
                walk(&entry.path(), files);
            }
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// Lines that contain one of the words. The words are given in two halves so that this file does not contain them.
fn lines_with(words: &[(&str, &str)]) -> Vec<String> {
    let words: Vec<String> = words
        .iter()
        .map(|(head, tail)| format!("{head}{tail}"))
        .collect();
    let mut found = Vec::new();
    for text in texts() {
        for (number, line) in text.own_lines() {
            if let Some(word) = words.iter().find(|word| line.contains(word.as_str())) {
                found.push(format!("{}:{number}: {word}", text.name));
            }
        }
    }
    found
}

#[test]
fn nothing_is_left_unfinished() {
    let words = [
        ("FIX", "ME"),
        ("TO", "DO"),
        ("XX", "X:"),
        ("todo", "!("),
        ("unimplemented", "!("),
        ("#[ign", "ore"),
    ];
    assert_none("unfinished work", &lines_with(&words));
}

#[test]
fn no_file_names_a_machine_or_a_registry_host() {
    let words = [
        ("/ro", "ot/"),
        ("/wo", "rk/"),
        ("/ho", "me/"),
        ("crates", ".io"),
        ("pypi", ".org"),
        ("python", "hosted"),
        ("debian", ".org"),
        ("npm", "js."),
    ];
    assert_none(
        "paths of one machine or hosts of registries",
        &lines_with(&words),
    );
}

#[test]
fn sources_are_short() {
    let found: Vec<String> = texts()
        .iter()
        .filter(|text| text.has_extension(&["rs", "sh", "py", "c", "h", "cpp", "hpp"]))
        .map(|text| (text, text.contents.lines().count()))
        .filter(|(_, lines)| *lines > SOURCE_LINES_MAX)
        .map(|(text, lines)| format!("{}: {lines} lines", text.name))
        .collect();
    assert_none("sources to split by concept", &found);
}

#[test]
fn lines_end_cleanly() {
    let mut found = Vec::new();
    for text in texts()
        .iter()
        .filter(|text| !text.has_extension(&["patch", "lock", "stderr", "stdout"]))
    {
        for (number, line) in text.own_lines() {
            if line.ends_with([' ', '\t', '\r']) {
                found.push(format!("{}:{number}: white space at the end", text.name));
            }
        }
        if !text.contents.is_empty() && !text.contents.ends_with('\n') {
            found.push(format!("{}: no newline at the end", text.name));
        }
    }
    assert_none("untidy lines", &found);
}

/// Clippy checks the same; this also covers code that the current target does not compile.
#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let block = format!("unsafe{}", " {");
    let implementation = format!("unsafe{}", " impl");
    let mut found = Vec::new();
    for text in texts().iter().filter(|text| text.has_extension(&["rs"])) {
        let lines: Vec<&str> = text.contents.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains(&block) && !code.contains(&implementation) {
                continue;
            }
            // The comment stands above the statement, which may have begun some lines before.
            let above = &lines[index.saturating_sub(16)..=index];
            if !above.iter().any(|line| line.contains("SAFETY:")) {
                found.push(format!("{}:{}: {}", text.name, index + 1, line.trim()));
            }
        }
    }
    assert_none("unsafe without a reason", &found);
}

#[test]
fn the_changelog_has_this_version() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let heading = format!("## [{}]", env!("CARGO_PKG_VERSION"));
    assert!(
        changelog.lines().any(|line| line.starts_with(&heading)),
        "CHANGELOG.md has no {heading}"
    );
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut found = Vec::new();
    for text in texts().iter().filter(|text| text.has_extension(&["md"])) {
        let folder = root().join(&text.name).parent().unwrap().to_owned();
        for link in text
            .contents
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let target = link.split('#').next().unwrap_or_default();
            let elsewhere =
                target.is_empty() || target.contains("://") || target.contains(char::is_whitespace);
            if !elsewhere && !folder.join(target).exists() {
                found.push(format!("{}: {link}", text.name));
            }
        }
    }
    assert_none("broken links", &found);
}

#[test]
fn the_readme_shows_the_example_that_compiles() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let example = fs::read_to_string(root().join("examples/generate.rs")).unwrap();
    assert!(
        readme.contains(&format!("```rust\n{example}```")),
        "README.md does not show examples/generate.rs"
    );
}

/// The commands in the documents' code blocks, one a line, without prompts, comments and leading `VAR=value`s.
fn documented_commands() -> Vec<(String, Vec<String>)> {
    let mut commands = Vec::new();
    for text in texts()
        .iter()
        .filter(|text| text.has_extension(&["md"]) && !text.name.starts_with("vendor/"))
    {
        let mut in_shell_block = false;
        for line in text.contents.lines() {
            if let Some(language) = line.trim().strip_prefix("```") {
                in_shell_block =
                    !in_shell_block && ["", "sh", "bash", "console"].contains(&language);
                continue;
            }
            if !in_shell_block {
                continue;
            }
            let line = line.trim().trim_start_matches("$ ");
            let words: Vec<String> = line
                .split(" #")
                .next()
                .unwrap_or_default()
                .split_whitespace()
                .skip_while(|word| {
                    word.contains('=') && word.starts_with(|first: char| first.is_ascii_uppercase())
                })
                .map(str::to_owned)
                .collect();
            if !words.is_empty() {
                commands.push((text.name.clone(), words));
            }
        }
    }
    commands
}

#[test]
fn documented_commands_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let help = |verb: &[&str]| {
        let output = assert_cmd::Command::cargo_bin("faultline")
            .unwrap()
            .args(verb)
            .arg("--help")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (verbs, run_help) = (help(&[]), help(&["run"]));
    let mut found = Vec::new();
    let mut checked = 0;
    for (document, words) in documented_commands() {
        let program = words[0].rsplit('/').next().unwrap_or_default();
        let command = words.join(" ");
        let argument = words.get(1).map_or("", String::as_str);
        let good = match program {
            "make" => argument.is_empty() || makefile.contains(&format!("\n{argument}:")),
            "faultline" if argument == "run" => words
                .iter()
                .filter(|word| word.starts_with("--"))
                .all(|flag| run_help.contains(flag.split('=').next().unwrap_or_default())),
            "faultline" => argument.starts_with('-') || verbs.contains(&format!("\n  {argument} ")),
            _ if words[0].starts_with("scripts/") => root().join(&words[0]).is_file(),
            "cargo" => words
                .windows(2)
                .filter(|pair| pair[0] == "--bin")
                .all(|pair| ["faultline", "bench"].contains(&pair[1].as_str())),
            _ => continue,
        };
        checked += 1;
        if !good {
            found.push(format!("{document}: {command}"));
        }
    }
    assert!(
        checked >= 5,
        "only {checked} commands found in the documents"
    );
    assert_none("documented commands that do not exist", &found);
}
