package main

import (
	"errors"
	"fmt"

	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/sink"
)

// checkResults judges recipients and sinks as the machine will, as far as they stand in the manifest.
func checkResults(m *manifest.Manifest, plainHTTP bool) error {
	var errs []error
	for i, to := range m.Results.Recipients {
		if err := result.CheckRecipient(to); err != nil {
			errs = append(errs, fmt.Errorf("results.recipients[%d]: %w", i, err))
		}
	}
	for i, s := range m.Results.Sinks {
		if s.Upload == nil {
			continue
		}
		if _, err := sink.ParseUpload(s.Upload, plainHTTP); err != nil {
			errs = append(errs, fmt.Errorf("results.sinks[%d]: %w", i, err))
		}
	}
	return errors.Join(errs...)
}
