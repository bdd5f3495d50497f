package result

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// check reports all that a reader of a statement may not take for granted, at once and by member.
func (s *Statement) check() error {
	var errs []error
	must := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	p := &s.Predicate
	must(s.Type == StatementType, "_type is %.80q, want %q", s.Type, StatementType)
	must(s.PredicateType == PredicateType, "predicateType is %.80q, want %q", s.PredicateType, PredicateType)
	s.checkSubjects(must)
	p.check(must)
	must(p.Profile == "production" || p.Profile == "simulation", "predicate.profile: %.40q is unknown", p.Profile)
	must(isHex(p.ManifestSHA384, 48), "predicate.manifest_sha384: %.100q is not 96 hex digits", p.ManifestSHA384)
	must(isHex(p.InitdataSHA256, 32), "predicate.initdata_sha256: %.80q is not 64 hex digits", p.InitdataSHA256)
	must(p.Measurement == "" || isHex(p.Measurement, 48), "predicate.measurement: %.100q is not 96 hex digits", p.Measurement)
	must(slices.Contains([]string{BindLaunch, BindPinned, BindRuntime, BindNone}, p.Binding), "predicate.binding: %.40q is unknown", p.Binding)
	must(slices.Contains(Reasons, p.Reason), "predicate.reason: %.40q is unknown", p.Reason)
	for i, m := range p.Images {
		must(isDigest(m.Digest), "predicate.images[%d].digest: %.80q is not sha256:HEX", i, m.Digest)
		file := m.Content != ""
		must(file || isDigest(m.ConfigDigest), "predicate.images[%d].config_digest: %.80q is not sha256:HEX", i, m.ConfigDigest)
		must(!file || isDigest(m.Content), "predicate.images[%d].content_digest: %.80q is not sha256:HEX", i, m.Content)
		must(!file || m.ConfigDigest == "" && len(m.Layers) == 0, "predicate.images[%d]: is a file by its content_digest, and has a config or layers", i)
		for j, l := range m.Layers {
			must(isDigest(l), "predicate.images[%d].layers[%d]: %.80q is not sha256:HEX", i, j, l)
		}
	}
	w := p.Workload
	must(w.Exit == nil || *w.Exit >= 0 && *w.Exit <= 255, "predicate.workload.exit: is not 0 to 255")
	must(0 <= w.Started && w.Started <= w.Ended, "predicate.workload: ended at %d µs, started at %d µs", w.Ended, w.Started)
	for i, e := range p.Timeline {
		if err := e.check(); err != nil {
			must(false, "predicate.timeline[%d]: %w", i, err)
		}
	}
	return errors.Join(errs...)
}

// isHex reports whether s is n bytes in lower-case hex.
func isHex(s string, n int) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == n && strings.ToLower(s) == s
}

func isDigest(s string) bool {
	h, ok := strings.CutPrefix(s, "sha256:")
	return ok && isHex(h, 32)
}
