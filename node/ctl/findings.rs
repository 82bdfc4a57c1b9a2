//! What a check has found: counted all, remembered some, shown as text or JSON.

use serde::Serialize;

use crate::fatal::Exit;

/// Findings that are remembered; more are only counted.
const KEPT_MAX: usize = 1000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Severity {
    /// As it should be, or harmless.
    Note,
    /// Bytes are not what was written.
    Damage,
    /// Of another node, cluster or core.
    Identity,
    /// Written by a version that this one does not know.
    Format,
    /// The disk refuses.
    Disk,
}

impl Severity {
    /// The severity of an error that ended the look at something.
    pub(super) const fn of(exit: Exit) -> Self {
        match exit {
            Exit::DiskError => Self::Disk,
            Exit::UnknownFormat => Self::Format,
            Exit::WrongIdentity => Self::Identity,
            _ => Self::Damage,
        }
    }

    const fn exit(self) -> Option<Exit> {
        match self {
            Self::Note => None,
            Self::Damage => Some(Exit::DataDamaged),
            Self::Identity => Some(Exit::WrongIdentity),
            Self::Format => Some(Exit::UnknownFormat),
            Self::Disk => Some(Exit::DiskError),
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Damage => "DAMAGE",
            Self::Identity => "WRONG IDENTITY",
            Self::Format => "UNKNOWN FORMAT",
            Self::Disk => "DISK ERROR",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// In short, always the same words for the same thing.
    pub(super) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offset: Option<u64>,
    /// What follows from it.
    pub(super) detail: String,
}

/// All findings of a run.
#[derive(Debug, Default)]
pub(super) struct Findings {
    kept: Vec<Finding>,
    bad: u64,
    dropped: u64,
    worst: Option<Severity>,
}

impl Findings {
    pub(super) fn add(&mut self, finding: Finding) {
        self.bad += u64::from(finding.severity > Severity::Note);
        self.worst = self.worst.max(Some(finding.severity));
        if self.kept.len() < KEPT_MAX {
            self.kept.push(finding);
        } else {
            self.dropped += 1;
        }
    }

    /// The status that tells of the worst one.
    pub(super) fn exit(&self) -> Option<Exit> {
        self.worst.and_then(Severity::exit)
    }

    /// How many are no mere notes.
    pub(super) const fn bad(&self) -> u64 {
        self.bad
    }

    /// A line for each.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for Finding { severity, kind, file, offset, detail } in &self.kept {
            let place = match (file, offset) {
                (Some(file), Some(offset)) => format!(" at {offset} of {file}"),
                (Some(file), None) => format!(" in {file}"),
                _ => String::new(),
            };
            let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
            text += &format!("  {} {kind}{place}{detail}\n", severity.label());
        }
        if self.dropped > 0 {
            text += &format!("  … and {} more\n", self.dropped);
        }
        text
    }

    /// All of it for programs, beside `facts`.
    pub(super) fn json(&self, facts: &serde_json::Value) -> String {
        let code = self.exit().map_or(0, Exit::code);
        let all = serde_json::json!({
            "ok": self.bad == 0,
            "exit_code": code,
            "findings": self.kept,
            "findings_not_shown": self.dropped,
            "cores": facts,
        });
        format!("{all:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Finding {
        let (kind, detail) = ("damaged batch".to_owned(), String::new());
        Finding { severity, kind, file: Some("f".to_owned()), offset: Some(7), detail }
    }

    /// The status is that of the worst finding; memory is bounded, counts are not.
    #[test]
    fn the_worst_finding_decides() {
        let mut findings = Findings::default();
        assert_eq!((findings.exit(), findings.bad()), (None, 0));
        for (severity, exit) in [
            (Severity::Note, None),
            (Severity::Damage, Some(Exit::DataDamaged)),
            (Severity::Format, Some(Exit::UnknownFormat)),
            (Severity::Identity, Some(Exit::UnknownFormat)),
            (Severity::Disk, Some(Exit::DiskError)),
            (Severity::Damage, Some(Exit::DiskError)),
        ] {
            findings.add(finding(severity));
            assert_eq!(findings.exit(), exit, "{severity:?}");
        }
        assert_eq!(findings.bad(), 5);
        assert!(findings.text().contains("  DAMAGE damaged batch at 7 of f\n"));
        (0..5000).for_each(|_| findings.add(finding(Severity::Damage)));
        assert_eq!((findings.kept.len(), findings.bad()), (KEPT_MAX, 5005));
        assert!(findings.text().ends_with("… and 4006 more\n"), "{}", findings.dropped);
    }
}
