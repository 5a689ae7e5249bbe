use super::*;
use crate::test_files::{read, write};

/// A folder with a tree and an empty patch folder.
struct Case {
    dir: tempfile::TempDir,
    patches: Vec<(String, String)>,
}

impl Case {
    fn new(files: &[(&str, &str)]) -> Case {
        let case = Case {
            dir: tempfile::tempdir().unwrap(),
            patches: Vec::new(),
        };
        for (path, text) in files {
            write(&case.tree().join(path), text);
        }
        fs::create_dir_all(case.tree()).unwrap();
        case
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn patch(mut self, diff: &str) -> Case {
        let name = format!("{:04}-change.patch", self.patches.len() + 1);
        let mail = format!(
            "From 0 Mon Sep 17 00:00:00 2001\nFrom: someone <someone@example.org>\nSubject: [PATCH] change\n\n\
             Prose that is no diff.\n---\n x | 1 +\n\n{diff}-- \n2.47.3\n\n"
        );
        self.patches.push((name, mail));
        self
    }

    fn series(&self) -> Series {
        let folder = self.dir.path().join("patches");
        let mut series = String::from("# in order\n");
        for (name, mail) in &self.patches {
            write(&folder.join(name), mail);
            series.push_str(&format!("{name} # why\n"));
        }
        write(&folder.join(SERIES_FILE), &series);
        Series::load(&folder).unwrap()
    }

    fn apply(&self) -> Result<Overlay> {
        apply(&self.tree(), &self.series())
    }

    fn error(&self) -> String {
        self.apply().unwrap_err().to_string()
    }
}

fn text(overlay: &Overlay, path: &str) -> String {
    String::from_utf8(overlay.get(path).unwrap().unwrap().to_vec()).unwrap()
}

const CHANGE_B: &str = "\
diff --git a/src/x.c b/src/x.c
index 1111111..2222222 100644
--- a/src/x.c
+++ b/src/x.c
@@ -1,3 +1,4 @@ int f(void)
 a
-b
+B
+B2
 c
";

#[test]
fn a_file_is_changed_in_memory_only() {
    let case = Case::new(&[("src/x.c", "a\nb\nc\n")]).patch(CHANGE_B);
    let overlay = case.apply().unwrap();
    assert_eq!(text(&overlay, "src/x.c"), "a\nB\nB2\nc\n");
    assert_eq!(read(&case.tree().join("src/x.c")), "a\nb\nc\n");
}

#[test]
fn lines_may_have_moved() {
    let moved = format!("{}a\nb\nc\nend\n", "line\n".repeat(40));
    let overlay = Case::new(&[("src/x.c", &moved)])
        .patch(CHANGE_B)
        .apply()
        .unwrap();
    assert_eq!(text(&overlay, "src/x.c"), moved.replace("b\n", "B\nB2\n"));
}

#[test]
fn later_patches_see_what_earlier_ones_made() {
    let again = "\
diff --git a/src/x.c b/src/x.c
--- a/src/x.c
+++ b/src/x.c
@@ -1,3 +1,3 @@
 a
-B
+b again
 B2
";
    let overlay = Case::new(&[("src/x.c", "a\nb\nc\n")])
        .patch(CHANGE_B)
        .patch(again)
        .apply()
        .unwrap();
    assert_eq!(text(&overlay, "src/x.c"), "a\nb again\nB2\nc\n");
}

const CREATE: &str = "\
diff --git a/src/new.c b/src/new.c
new file mode 100644
index 0000000..1111111
--- /dev/null
+++ b/src/new.c
@@ -0,0 +1,2 @@
+one
+two
";

const DELETE: &str = "\
diff --git a/src/old.c b/src/old.c
deleted file mode 100644
index 1111111..0000000
--- a/src/old.c
+++ /dev/null
@@ -1,2 +0,0 @@
-one
-two
";

#[test]
fn files_are_created_and_deleted() {
    let case = Case::new(&[("src/old.c", "one\ntwo\n")])
        .patch(CREATE)
        .patch(DELETE);
    let overlay = case.apply().unwrap();
    assert_eq!(text(&overlay, "src/new.c"), "one\ntwo\n");
    assert_eq!(overlay.get("src/old.c"), Some(None));
    assert_eq!(overlay.get("src/other.c"), None);
}

#[test]
fn a_hunk_without_its_context_is_named() {
    let two_hunks = format!("{CHANGE_B}@@ -20,2 +21,2 @@\n y\n-z\n+Z\n");
    let message = Case::new(&[("src/x.c", "a\nb\nc\nd\n")])
        .patch(&two_hunks)
        .error();
    assert_eq!(
        message,
        "patch 0001-change.patch: src/x.c: error applying hunk #2 of 2: its context is not in the file"
    );
}

#[test]
fn a_context_that_differs_in_one_blank_does_not_apply() {
    let message = Case::new(&[("src/x.c", "a \nb\nc\n")])
        .patch(CHANGE_B)
        .error();
    assert!(
        message.contains("src/x.c: error applying hunk #1 of 1"),
        "{message}"
    );
}

#[test]
fn a_series_is_not_applied_twice() {
    let message = Case::new(&[("src/x.c", "a\nB\nB2\nc\n")])
        .patch(CHANGE_B)
        .error();
    assert!(message.contains("hunk #1"), "{message}");
}

#[test]
fn impossible_operations_are_refused() {
    let rename = "\
diff --git a/a.c b/b.c
similarity index 100%
rename from a.c
rename to b.c
";
    let outside = CHANGE_B.replace("src/x.c", "../x.c");
    let link = CREATE.replace("100644", "120000");
    for (files, diff, part) in [
        (
            &[("src/new.c", "here\n")][..],
            CREATE,
            "src/new.c: is to be created but exists already",
        ),
        (&[], CHANGE_B, "src/x.c: does not exist in the tree"),
        (
            &[("src/old.c", "one\ntwo\nthree\n")],
            DELETE,
            "src/old.c: is to be deleted but has more lines",
        ),
        (
            &[("a.c", "a\n")],
            rename,
            "renames and copies are not supported",
        ),
        (&[], &outside, "../x.c: is not a path inside the tree"),
        (&[], &link, "symbolic links"),
        (&[], "no diff at all\n", "0001-change.patch: (not parsed)"),
    ] {
        let message = Case::new(files).patch(diff).error();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn series_and_folder_must_agree() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let error = |series: &str| {
        write(&folder.join(SERIES_FILE), series);
        Series::load(folder).unwrap_err().to_string()
    };
    assert!(
        Series::load(folder)
            .unwrap_err()
            .to_string()
            .contains("cannot read"),
        "without a series file"
    );
    assert!(error("0001-a.patch\n").contains("0001-a.patch is listed but is not in the folder"));
    write(&folder.join("0001-a.patch"), "x");
    assert!(error("0001-a.patch\n0001-a.patch\n").contains("0001-a.patch is listed twice"));
    assert!(error("# nothing\n").contains("0001-a.patch is in the folder but is not listed"));
    assert!(error("../0001-a.patch\n").contains("is not a file name"));
}

#[test]
fn the_digest_depends_on_order_names_and_contents() {
    let series = |patches: &[(&str, &str)]| {
        let patches = patches.iter().map(|(name, content)| Patch {
            name: (*name).to_owned(),
            content: content.as_bytes().to_vec(),
        });
        Series {
            folder: PathBuf::new(),
            patches: patches.collect(),
        }
        .digest()
    };
    assert_eq!(series(&[]), "none");
    let all = [
        series(&[("a", "1"), ("b", "2")]),
        series(&[("b", "2"), ("a", "1")]),
        series(&[("a", "1"), ("b", "3")]),
        series(&[("a", "1"), ("c", "2")]),
        series(&[("a", "1b"), ("", "2")]),
    ];
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    assert!(all.iter().all(|digest| digest.len() == 64));
}

/// Applies and copies, so that the tree can be verified.
fn patched(case: &Case) -> (Series, Overlay, PathBuf) {
    let (series, overlay) = (case.series(), case.apply().unwrap());
    let tree = case.dir.path().join("patched");
    crate::sync::tree(&case.tree(), &overlay, &[], &tree).unwrap();
    (series, overlay, tree)
}

#[test]
fn sums_that_were_written_are_right() {
    let case = Case::new(&[
        ("src/x.c", "a\nb\nc\n"),
        ("src/old.c", "one\ntwo\n"),
        ("same.c", ""),
    ])
    .patch(CHANGE_B)
    .patch(CREATE)
    .patch(DELETE);
    let (series, overlay, tree) = patched(&case);
    write_sums(&series, &overlay).unwrap();
    verify(&tree, &series, &overlay).unwrap();
    check(&series, &overlay).unwrap();
    assert!(!tree.join("src/old.c").exists() && tree.join("same.c").exists());
    let sums = read(&series.sums_file());
    let paths: Vec<&str> = sums.lines().map(|line| &line[66..]).collect();
    assert_eq!(paths, ["src/new.c", "src/x.c"]);
}

#[test]
fn every_difference_is_listed() {
    let case = Case::new(&[("src/x.c", "a\nb\nc\n"), ("src/old.c", "one\ntwo\n")])
        .patch(CHANGE_B)
        .patch(CREATE)
        .patch(DELETE);
    let (series, overlay, tree) = patched(&case);
    write_sums(&series, &overlay).unwrap();
    let sums = read(&series.sums_file());
    write(
        &series.sums_file(),
        &sums.replace("src/new.c", "src/extra.c"),
    );
    write(&tree.join("src/x.c"), "changed by hand\n");
    write(&tree.join("src/old.c"), "");

    let message = verify(&tree, &series, &overlay).unwrap_err().to_string();
    for part in [
        "SHA256SUMS",
        "src/x.c: expected ",
        "src/new.c: is changed by the series but has no sum",
        "src/old.c: is deleted by the series but exists",
        "src/extra.c: has a sum but is not touched by the series",
        "cargo run -p llama-build -- refresh-sums",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn a_copy_that_silently_did_nothing_is_noticed() {
    let case = Case::new(&[("src/x.c", "a\nb\nc\n")]).patch(CHANGE_B);
    let (series, overlay) = (case.series(), case.apply().unwrap());
    write_sums(&series, &overlay).unwrap();
    let message = verify(&case.tree(), &series, &overlay)
        .unwrap_err()
        .to_string();
    assert!(message.contains("src/x.c: expected"), "{message}");
}

#[test]
fn a_malformed_list_of_sums_names_the_line() {
    let case = Case::new(&[("src/x.c", "a\nb\nc\n")]).patch(CHANGE_B);
    let (series, overlay) = (case.series(), case.apply().unwrap());
    let sum = "0".repeat(64);
    for (sums, part) in [
        ("nonsense\n".to_owned(), "line 1: expected `sha256  path`"),
        ("00  src/x.c\n".to_owned(), "line 1: the sum is not 64"),
        (
            format!("{sum}  src/x.c\n{sum}  src/x.c\n"),
            "line 2: this file has a sum already",
        ),
    ] {
        write(&series.sums_file(), &sums);
        let message = check(&series, &overlay).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}
