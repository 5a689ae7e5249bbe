use std::os::unix::fs::PermissionsExt;

use super::*;

const LIMIT: u64 = 1 << 20;

fn tokens(range: std::ops::Range<i32>) -> Vec<Token> {
    range.map(Token).collect()
}

fn states(folder: &Path, identity: u8, limit_bytes: u64) -> States {
    let model = Path::new("/models/a model.v1.gguf");
    States::open(
        &folder.join("not/yet/there"),
        model,
        [identity; 32],
        limit_bytes,
    )
}

fn always() -> bool {
    true
}

fn names(folder: &Path) -> Vec<String> {
    let entries = entries(&folder.join("not/yet/there")).into_iter();
    let name = |entry: Entry| {
        entry
            .path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned()
    };
    entries.map(name).collect()
}

/// A state that is not all the same.
fn state(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 % 251) as u8).collect()
}

#[test]
fn what_was_written_is_found_again_by_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = states(folder.path(), 1, LIMIT);
    assert!(writer.best(&tokens(0..10), 0, 1000, true).is_none());
    // More than a piece.
    let (long, short) = (state((1 << 20) + 17), state(5));
    let mut writer_of_more = states(folder.path(), 1, 4 * LIMIT);
    writer_of_more
        .write(&tokens(0..100), &long, &always)
        .unwrap();
    writer.write(&tokens(50..60), &short, &always).unwrap();
    let mut reader = states(folder.path(), 1, LIMIT);
    let best = |reader: &States, tokens: &[Token], floor, room, cuts| {
        let best = reader.best(tokens, floor, room, cuts);
        best.map(|(index, count)| (reader.tokens(index).len(), count))
    };
    assert_eq!(
        best(&reader, &tokens(0..200), 0, 1000, true),
        Some((100, 100))
    );
    assert_eq!(
        best(&reader, &tokens(0..200), 0, 1000, false),
        Some((100, 100))
    );
    // The last token is computed in any case.
    assert_eq!(
        best(&reader, &tokens(0..100), 0, 1000, true),
        Some((100, 99))
    );
    assert_eq!(best(&reader, &tokens(0..100), 0, 1000, false), None);
    assert_eq!(
        best(&reader, &tokens(0..4), 0, 1000, true),
        None,
        "it would read much for little"
    );
    assert_eq!(
        best(&reader, &tokens(0..200), 100, 1000, true),
        None,
        "as much is there"
    );
    assert_eq!(best(&reader, &tokens(0..200), 0, 99, true), None, "no room");
    assert_eq!(best(&reader, &[], 0, 1000, true), None);

    let (index, _) = reader.best(&tokens(0..200), 0, 1000, true).unwrap();
    assert_eq!(reader.read(index).unwrap(), long);
    let (index, _) = reader.best(&tokens(50..70), 0, 1000, true).unwrap();
    assert_eq!(reader.read(index).unwrap(), short);
    assert_eq!(reader.renew(&tokens(50..60)), Some(56 + 4 * 10 + 4 + 5 + 4));
    assert_eq!(reader.renew(&tokens(50..61)), None);
}

#[test]
fn only_the_owner_can_read() {
    let folder = tempfile::tempdir().unwrap();
    states(folder.path(), 1, LIMIT)
        .write(&tokens(0..3), b"text", &always)
        .unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let inner = folder.path().join("not/yet/there");
    assert_eq!(mode(&inner), 0o700);
    assert_eq!(mode(&inner.join(&names(folder.path())[0])), 0o600);
}

/// Each byte of the file counts: none may be another one without being noticed.
#[test]
fn a_broken_file_is_no_state() {
    let folder = tempfile::tempdir().unwrap();
    states(folder.path(), 1, LIMIT)
        .write(&tokens(0..20), &state(300), &always)
        .unwrap();
    let path = folder
        .path()
        .join("not/yet/there")
        .join(&names(folder.path())[0]);
    let good = fs::read(&path).unwrap();
    let is_read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let mut states = states(folder.path(), 1, LIMIT);
        let best = states.best(&tokens(0..30), 0, 1000, true);
        let read = best.and_then(|(index, _)| states.read(index));
        assert!(read.is_some() || !path.exists(), "a broken file is removed");
        read
    };
    assert_eq!(is_read(&good), Some(state(300)));
    for index in 0..good.len() {
        let mut bad = good.clone();
        bad[index] ^= 1 << (index % 8);
        assert_eq!(is_read(&bad), None, "byte {index}");
    }
    for length in [0, 7, 8, 55, 56, 100, good.len() - 1] {
        assert_eq!(is_read(&good[..length]), None, "{length} bytes");
    }
    assert_eq!(is_read(&[&good[..], &[0]].concat()), None);
    // A head that asks for more memory than there is.
    let mut huge = good.clone();
    huge[12..24].fill(0xff);
    assert_eq!(is_read(&huge), None);
}

#[test]
fn what_is_of_another_model_or_setting_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    states(folder.path(), 1, LIMIT)
        .write(&tokens(0..20), b"x", &always)
        .unwrap();
    let other_model = States::open(
        &folder.path().join("not/yet/there"),
        Path::new("/models/b.gguf"),
        [1; 32],
        LIMIT,
    );
    assert!(other_model.best(&tokens(0..30), 0, 1000, true).is_none());
    assert_eq!(names(folder.path()).len(), 1, "it is another model's");
    let changed = states(folder.path(), 2, LIMIT);
    assert!(changed.best(&tokens(0..30), 0, 1000, true).is_none());
    assert!(names(folder.path()).is_empty());
}

#[test]
fn the_files_stay_within_their_limits() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("not/yet/there");
    let mut states = states(folder.path(), 1, 2000);
    let age = |name: &str, seconds: u64| {
        let file = fs::File::open(inner.join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
            .unwrap();
    };
    for number in 0..3i32 {
        states
            .write(
                &tokens(100 * number..100 * number + 10),
                &state(700),
                &always,
            )
            .unwrap();
        let newest = states.stored.last().unwrap().path.clone();
        age(
            newest.file_name().unwrap().to_str().unwrap(),
            100 - number as u64,
        );
    }
    for (name, seconds) in [
        ("killed.1.tmp", 1000),
        ("writing.2.tmp", 1),
        ("notes.txt", 1000),
    ] {
        fs::write(inner.join(name), "x").unwrap();
        age(name, seconds);
    }
    // The first one was used again.
    assert!(states.renew(&tokens(0..10)).is_some());
    states.tidy(&[]);
    let reader = |number: i32| {
        let all = self::states(folder.path(), 1, 2000);
        all.best(&tokens(100 * number..100 * number + 20), 0, 1000, true)
            .is_some()
    };
    assert_eq!([reader(0), reader(1), reader(2)], [true, false, true]);
    let mut left = names(folder.path());
    left.retain(|name| !name.ends_with(".state"));
    left.sort();
    assert_eq!(left, ["notes.txt", "writing.2.tmp"]);

    // Many files of other models.
    for number in 0..FILES_MAX + 3 {
        let name = format!("other-{number}.state");
        fs::write(inner.join(&name), "x").unwrap();
        age(&name, 1000 + number as u64);
    }
    states.tidy(&[]);
    let count = names(folder.path())
        .iter()
        .filter(|name| name.ends_with(".state"))
        .count();
    assert_eq!(count, FILES_MAX);
    assert!(reader(0) && reader(2), "those were used last");
}

#[test]
fn a_longer_conversation_takes_the_place_of_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let mut states = states(folder.path(), 1, LIMIT);
    for end in [10, 20, 30] {
        states.write(&tokens(0..end), b"x", &always).unwrap();
    }
    states.write(&tokens(5..9), b"x", &always).unwrap();
    // The second one was written along with the third.
    states.tidy(&[tokens(0..30), tokens(0..20)]);
    let lengths = || {
        let states = self::states(folder.path(), 1, LIMIT);
        let mut lengths: Vec<usize> = states.stored.iter().map(|s| s.head.tokens.len()).collect();
        lengths.sort_unstable();
        lengths
    };
    assert_eq!(lengths(), [4, 20, 30]);
}

#[test]
fn writing_can_be_given_up_and_can_fail() {
    let folder = tempfile::tempdir().unwrap();
    let mut states = states(folder.path(), 1, LIMIT);
    let pieces = std::cell::Cell::new(0);
    let twice = || {
        pieces.set(pieces.get() + 1);
        pieces.get() <= 2
    };
    let written = states
        .write(&tokens(0..10), &state(3 << 20), &twice)
        .unwrap();
    assert_eq!(written, None);
    assert!(names(folder.path()).is_empty(), "nothing of it is left");
    // Nothing can be made below a file.
    let blocked = folder.path().join("file");
    fs::write(&blocked, "x").unwrap();
    let mut states = States::open(&blocked, Path::new("m.gguf"), [0; 32], LIMIT);
    assert!(states.write(&tokens(0..10), b"x", &always).is_err());
    states.tidy(&[]);
}

#[test]
fn an_identity_is_of_a_file_as_it_is_and_of_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, "weights").unwrap();
    let config = |keys: &str| {
        let text = format!("[models.m]\npath = 'm.gguf'\n{keys}");
        let config = crate::config::Config::parse(&text, &folder.path().join("models.toml"));
        config.unwrap().models["m"].clone()
    };
    let of = |keys: &str| identity(&config(keys), &[MappedFile::of(&path).unwrap()]).unwrap();
    let first = of("");
    assert_eq!(first, of("ttl = 0"));
    assert_ne!(first, of("repack = false"));
    assert_ne!(first, of("n_ctx = 100"));
    // Other contents with the same size and time.
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "WEIGHTS").unwrap();
    fs::File::open(&path).unwrap().set_modified(time).unwrap();
    assert_ne!(first, of(""));
}
