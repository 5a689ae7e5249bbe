//! `GET /models` as a table for people.

use serde_json::Value;

use crate::config::shown_bytes;

const HEAD: [&str; 9] = [
    "NAME",
    "STATUS",
    "FILE",
    "RESIDENT",
    "BUDGET",
    "HIT %",
    "KV",
    "LAST USED",
    "UNTIL",
];

/// The table, a line a model, with a line of names above.
pub fn table(list: &Value) -> String {
    let models = list["data"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(models.iter().map(row));
    let widths: [usize; 9] = std::array::from_fn(|column| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(model: &Value) -> [String; 9] {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let status = &model["status"];
    let state = match status["progress"].as_f64() {
        Some(progress) => format!("{} {:.0} %", text(&status["state"]), 100.0 * progress),
        None => text(&status["state"]),
    };
    let path = text(&model["path"]);
    let name = path.rsplit('/').next().unwrap_or_default();
    let file = match model["file"].as_str() {
        Some("present") | None => name.to_owned(),
        Some(problem) => format!("{name} ({problem})"),
    };
    let is_loaded = status["value"] == "loaded";
    let bytes = |value: &Value| match value.as_u64() {
        Some(bytes) if is_loaded => shown_bytes(bytes),
        _ => String::new(),
    };
    let hits = model["hit_rate"].as_f64();
    let running = model["running"].as_u64().unwrap_or(0);
    let last_used = match model["idle_seconds"].as_f64() {
        _ if running > 0 => "now".to_owned(),
        Some(seconds) => format!("{} ago", time(seconds)),
        None => "never".to_owned(),
    };
    let until = match (&model["expires_in_seconds"], model["stays"].as_bool()) {
        (Value::Number(seconds), _) => format!("in {}", time(seconds.as_f64().unwrap_or(0.0))),
        (_, Some(true)) => "stays".to_owned(),
        _ => String::new(),
    };
    [
        text(&model["id"]),
        state,
        file,
        bytes(&model["resident_bytes"]),
        bytes(&model["budget_bytes"]),
        hits.map_or_else(String::new, |rate| format!("{:.1}", 100.0 * rate)),
        bytes(&model["kv_bytes"]),
        last_used,
        until,
    ]
}

fn time(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{seconds:.0} s"),
        ..5400.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.0} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn models_are_lines() {
        let list = json!({"data": [
            {"id": "small", "status": {"value": "loaded", "state": "idle", "progress": null}, "path": "/m/small.gguf",
             "file": "present", "resident_bytes": 104857600, "budget_bytes": null, "hit_rate": null, "kv_bytes": 1048576,
             "running": 0, "idle_seconds": 12.4, "expires_in_seconds": 287.6, "stays": false},
            {"id": "large", "status": {"value": "loading", "state": "loading", "progress": 0.5}, "path": "/m/large.gguf",
             "file": "replaced", "resident_bytes": 0, "budget_bytes": null, "hit_rate": 0.912, "kv_bytes": 0,
             "running": 0, "idle_seconds": null, "expires_in_seconds": null, "stays": false},
        ]});
        let expected = "\
NAME   STATUS        FILE                   RESIDENT   BUDGET  HIT %  KV       LAST USED  UNTIL
small  idle          small.gguf             100.0 MiB                 1.0 MiB  12 s ago   in 5 min
large  loading 50 %  large.gguf (replaced)                     91.2            never
";
        assert_eq!(table(&list), expected);
        assert_eq!(table(&json!({})).lines().count(), 1);
    }
}
