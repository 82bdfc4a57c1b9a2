//! Rules about the source itself that no compiler checks: layers, purity, sizes, leftovers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Which crates of the workspace each crate may import: strictly lower layers. Binaries and
/// benches at the top may use everything below them.
const LAYERS: &[(&str, &[&str])] = &[
    ("raft", &[]),
    ("ring", &[]),
    ("engine", &["raft"]),
    ("wal", &["raft", "ring"]),
    ("net", &["raft", "engine"]),
    ("loadgen", &["ring", "engine", "net"]),
    ("sim", &["raft", "engine", "wal", "net"]),
    ("bench", &["raft", "ring", "engine", "wal", "net"]),
    ("xtask", &[]),
    (".", &["raft", "ring", "engine", "wal", "net", "loadgen"]),
];

/// Crates that know no clock, thread, file, socket or global randomness.
const PURE: &[&str] = &["raft", "engine"];

/// What pure crates must not name. Their `clippy.toml` forbids some of it by type; this also
/// finds it in macros and behind aliases of a module.
const IMPURE: &[&str] = &[
    "std::time::Instant",
    "std::time::SystemTime",
    "SystemTime::now",
    "Instant::now",
    "std::thread",
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "println!",
    "eprintln!",
    "RandomState::new()",
    "hash_map::RandomState",
    "std::hash::RandomState",
    "getrandom",
];

/// Crates that forbid unsafe code as a whole.
const SAFE: &[&str] = &["raft", "engine", "net", "loadgen", "bench", "xtask"];

/// A file holds one idea. Tests may be longer.
const FILE_LINES_MAX: usize = 600;

/// Files that may be longer, each with its reason. Meant to stay empty.
const LONG_FILES: &[(&str, &str)] = &[];

/// Test files that sleep, each with its reason.
const SLEEPERS: &[(&str, &str)] =
    &[("loadgen/tests/load.rs", "a server that stalls is what the test is about")];

/// Columns, as in `rustfmt.toml`; rustfmt itself leaves long strings and comments alone.
const COLUMNS_MAX: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Path below the root, for messages and tables.
fn short(path: &Path) -> String {
    path.strip_prefix(root()).expect("all files are below the root").display().to_string()
}

/// Every file below `dir` with this extension, build output and hidden directories apart.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        for entry in entries {
            let entry = entry.expect("a directory can be listed to its end");
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let kind = entry.file_type().expect("every entry has a type");
            if kind.is_dir() && !name.starts_with('.') && !name.starts_with("target") {
                open.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<PathBuf> {
    files(root(), "rs")
}

/// Fails with every finding at once.
fn check(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

/// Names in the `[dependencies]` tables of a manifest: `a.workspace = true`, `b = "1"`,
/// `c = { … }`, `[dependencies.d]` and those under `[target.….dependencies]`. Renamed packages
/// (`x = { package = "y" }`) yield both names. `[dev-dependencies]` are not looked at.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(table) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = table == "dependencies" || table.ends_with(".dependencies");
            inside &= table != "workspace.dependencies";
            let parts = table.rsplit_once("dependencies.");
            if let Some((before, name)) = parts
                && (before.is_empty() || before.ends_with('.'))
                && before != "workspace."
            {
                names.insert(name.to_owned());
            }
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            let name = line.split(['.', '=', ' ']).next().expect("split yields one part");
            names.insert(name.to_owned());
            if let Some((_, rest)) = line.split_once("package = \"") {
                names.extend(rest.split('"').next().map(str::to_owned));
            }
        }
    }
    names
}

/// Without the comment at the end of a line. A `//` inside a string cuts too much, which the
/// rules that use this can live with.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

/// The lines of a file before its `#[cfg(test)] mod tests`, with their numbers from 1.
fn product_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end].lines().enumerate().map(|(index, line)| (index + 1, line))
}

#[test]
fn manifest_reader_understands_every_form() {
    let manifest = "[dependencies]\na.workspace = true\nb = \"1\"\n# c = 1\n\
                    d = { package = \"e\" }\n[dependencies.f]\nx = 1\n[dev-dependencies]\ng = 1\n\
                    [target.'cfg(unix)'.dependencies]\nh = 1\n[workspace.dependencies]\ni = 1\n";
    let names = dependencies(manifest);
    assert_eq!(
        names.iter().map(String::as_str).collect::<Vec<_>>(),
        ["a", "b", "d", "e", "f", "h"]
    );
}

#[test]
fn crates_import_only_lower_layers() {
    let mut findings = Vec::new();
    for &(folder, allowed) in LAYERS {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        for name in dependencies(&manifest) {
            let Some(import) = name.strip_prefix("coracle-") else { continue };
            if !allowed.contains(&import) {
                findings.push(format!("{folder} imports {import}; allowed: {allowed:?}"));
            }
        }
    }
    check("a crate imports only lower layers", &findings);
}

/// Test code of a crate is in a binary only if a normal dependency turns it on.
#[test]
fn only_the_simulator_turns_testing_on() {
    let mut findings = Vec::new();
    for &(folder, _) in LAYERS.iter().filter(|(folder, _)| *folder != "sim") {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        let mut table = "";
        for line in manifest.lines().map(str::trim) {
            if line.starts_with('[') {
                table = line;
            }
            let normal = table.contains("dependencies") && !table.contains("dev-dependencies");
            let test_code = ["\"testing\"", "\"planted\""].iter().any(|name| line.contains(name));
            if normal && test_code && !line.starts_with("planted = ") {
                findings.push(format!("{folder}: {table} {line}"));
            }
        }
    }
    check("test code is for the simulator and for dev-dependencies", &findings);
}

/// A new crate must be placed in a layer.
#[test]
fn every_crate_has_a_layer() {
    let manifest = read(&root().join("Cargo.toml"));
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ["));
    let members = members.and_then(|rest| rest.strip_suffix(']')).expect("one line of members");
    let members: BTreeSet<&str> = members.split(',').map(|m| m.trim().trim_matches('"')).collect();
    let layers: BTreeSet<&str> =
        LAYERS.iter().map(|&(name, _)| name).filter(|n| *n != ".").collect();
    assert_eq!(members, layers, "workspace members and LAYERS differ");
}

#[test]
fn raft_depends_on_nothing() {
    let names = dependencies(&read(&root().join("raft/Cargo.toml")));
    assert!(names.is_empty(), "raft is std only, but imports {names:?}");
}

#[test]
fn pure_crates_know_no_clock_thread_file_or_socket() {
    let mut findings = Vec::new();
    for krate in PURE {
        for path in files(&root().join(krate).join("src"), "rs") {
            for (number, line) in product_lines(&read(&path)) {
                for impure in IMPURE.iter().filter(|impure| code(line).contains(**impure)) {
                    findings.push(format!("{}:{number}: {impure}", short(&path)));
                }
            }
        }
    }
    check("pure crates get time, randomness and bytes from outside", &findings);
}

#[test]
fn safe_crates_forbid_unsafe_code() {
    let mut findings = Vec::new();
    for krate in SAFE {
        let src = root().join(krate).join("src");
        let tops = ["lib.rs", "main.rs"].map(|name| src.join(name));
        let tops: Vec<_> = tops.iter().filter(|path| path.is_file()).collect();
        assert!(!tops.is_empty(), "{krate} has neither lib.rs nor main.rs");
        for top in tops {
            if !read(top).contains("#![forbid(unsafe_code)]") {
                findings.push(short(top));
            }
        }
    }
    check("these crate roots must say #![forbid(unsafe_code)]", &findings);
}

/// Each `unsafe` block and impl says why it is sound, also in macros, where clippy does not look.
#[test]
fn unsafe_code_is_explained() {
    let mut findings = Vec::new();
    for path in sources() {
        let text = read(&path);
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = code(line);
            if !code.contains("unsafe {") && !code.contains("unsafe impl") || code.contains('"') {
                continue;
            }
            let before = &lines[index.saturating_sub(8)..=index];
            if !before.iter().any(|line| line.contains("// SAFETY:")) {
                findings.push(format!("{}:{}", short(&path), index + 1));
            }
        }
    }
    check("unsafe code needs a // SAFETY: comment", &findings);
}

#[test]
fn files_hold_one_idea() {
    let mut findings = Vec::new();
    for path in sources() {
        let name = short(&path);
        let is_test =
            name.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "testing.rs"));
        let lines = product_lines(&read(&path)).count();
        let excused = LONG_FILES.iter().any(|&(file, _)| file == name);
        if !is_test && !excused && lines > FILE_LINES_MAX {
            findings.push(format!("{name}: {lines} lines before its tests"));
        }
        if excused && lines <= FILE_LINES_MAX {
            findings.push(format!("{name}: short enough now, remove it from LONG_FILES"));
        }
    }
    check("a file has at most 600 lines, tests apart", &findings);
}

#[test]
fn lines_fit_the_page() {
    let mut findings = Vec::new();
    for path in sources() {
        for (index, line) in read(&path).lines().enumerate() {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX {
                findings.push(format!("{}:{}: {columns} columns", short(&path), index + 1));
            }
        }
    }
    check("a line has at most 100 columns", &findings);
}

/// Marks of unfinished work and of debugging. Spelled in halves, so that this file passes.
#[test]
fn no_leftovers() {
    let marks = ["TO", "FIX", "XX", "db", "to", "unimple"];
    let ends = ["DO", "ME", "X", "g!", "do!", "mented!"];
    let marks: Vec<String> = marks.iter().zip(ends).map(|(a, b)| format!("{a}{b}")).collect();
    let ignored = format!("#[ign{}", "ore");
    let mut findings = Vec::new();
    let texts = ["rs", "md", "toml", "sh", "py", "js"].map(|extension| files(root(), extension));
    for path in texts.iter().flatten() {
        for (index, line) in read(path).lines().enumerate() {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '!' && c != '_');
            let found = words.filter(|word| marks.iter().any(|mark| mark == word));
            for word in found.chain(line.contains(&ignored).then_some("ignored test")) {
                findings.push(format!("{}:{}: {word}", short(path), index + 1));
            }
        }
    }
    check("unfinished work belongs into issues, not into the source", &findings);
}

/// Tests of one crate wait for conditions, never for time to pass. End-to-end tests (`tests/`)
/// may poll other processes.
#[test]
fn tests_do_not_sleep() {
    let sleep = format!("thread::{}", "sleep");
    let mut findings = Vec::new();
    for path in sources() {
        let name = short(&path);
        let excused = SLEEPERS.iter().any(|&(file, _)| file == name);
        if excused || name.starts_with("tests/") {
            continue;
        }
        let text = read(&path);
        let in_tests = name.split('/').any(|part| part == "tests");
        let start = if in_tests { Some(0) } else { text.find("#[cfg(test)]\nmod tests") };
        let Some(start) = start else { continue };
        let first = text[..start].lines().count();
        for (index, line) in text[start..].lines().enumerate() {
            if code(line).contains(&sleep) {
                findings.push(format!("{name}:{}", first + index + 1));
            }
        }
    }
    check("a test that sleeps is slow or flaky, mostly both", &findings);
}

/// A bug to be planted is one condition at one place of the product, and only with its feature.
#[test]
fn every_planted_bug_has_one_switch() {
    let list = root().join("raft/src/planted.rs");
    let text = read(&list);
    let table = text.split_once("\nbugs! {\n").and_then(|(_, rest)| rest.split_once("\n}\n"));
    let table = table.expect("planted.rs lists the bugs in one table").0;
    let bugs: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("    ")?.split_once(" \"").map(|(bug, _)| bug))
        .filter(|bug| bug.starts_with(char::is_uppercase))
        .collect();
    assert!(bugs.len() >= 34, "only {} bugs are listed", bugs.len());
    let mut switches = Vec::new();
    for path in sources().into_iter().filter(|path| *path != list) {
        let name = short(&path);
        let product = name.split_once("/src/").is_some_and(|(_, rest)| !rest.contains("tests/"));
        let lines = read(&path);
        for (_, line) in product_lines(&lines).filter(|_| product) {
            let switches_here = code(line).split("planted(Bug::").skip(1);
            switches
                .extend(switches_here.filter_map(|rest| rest.split(')').next()).map(str::to_owned));
        }
    }
    let mut findings = Vec::new();
    for bug in &bugs {
        let count = switches.iter().filter(|found| found == bug).count();
        if count != 1 {
            findings.push(format!("{bug}: {count} switches"));
        }
    }
    findings.extend(switches.iter().filter(|s| !bugs.contains(s.as_str())).cloned());
    for &(folder, _) in LAYERS {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        let default = manifest.lines().find(|line| line.starts_with("default = "));
        if default.is_some_and(|line| line.contains("planted")) {
            findings.push(format!("{folder}/Cargo.toml plants bugs by default"));
        }
    }
    check("a planted bug has exactly one switch: planted(Bug::Name)", &findings);
}

/// A page nobody links is a page nobody reads. The front page and the index link to the rest.
#[test]
fn every_page_of_the_docs_is_linked() {
    let readme = read(&root().join("README.md"));
    let index = root().join("docs/README.md");
    let index = if index.is_file() { read(&index) } else { String::new() };
    let mut findings = Vec::new();
    for path in files(&root().join("docs"), "md") {
        let name = short(&path);
        let below = name.strip_prefix("docs/").expect("listed below docs").to_owned();
        let linked = [format!("({name})"), format!("({name}#"), format!("({below})")];
        let found = linked.iter().take(2).any(|link| readme.contains(link.as_str()))
            || index.contains(linked[2].as_str());
        if !found && below != "README.md" {
            findings.push(name);
        }
    }
    check("link these pages from README.md or docs/README.md", &findings);
}

/// Links between the project's own pages lead somewhere.
#[test]
fn links_in_pages_lead_somewhere() {
    let mut findings = Vec::new();
    for path in files(root(), "md") {
        let text = read(&path);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or(link);
            let outside = file.is_empty() || file.contains("://") || file.starts_with("mailto:");
            let from = path.parent().expect("a file has a folder");
            if !outside && !from.join(file).exists() {
                findings.push(format!("{}: {link}", short(&path)));
            }
        }
    }
    check("these links lead nowhere", &findings);
}

/// Every library and binary leaves `cargo bench -- --save-baseline` to criterion.
#[test]
fn only_criterion_benches_are_benches() {
    let mut findings = Vec::new();
    for &(folder, _) in LAYERS {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        let targets = manifest
            .split("\n[")
            .filter(|table| table.starts_with("lib]") || table.starts_with("[bin]]"));
        for table in targets.filter(|table| !table.contains("bench = false")) {
            findings.push(format!("{folder}: {}", table.lines().next().unwrap_or_default()));
        }
    }
    check("these targets need bench = false", &findings);
}
