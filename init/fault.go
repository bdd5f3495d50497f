//go:build ampoule_fault

package main

import "context"

// A build with this tag has one step that panics: how a VM test sees that a panic is reported and the power cut.
func init() {
	for i := range sequence {
		if sequence[i].name == "resolve" {
			sequence[i].do = func(*run, context.Context) error { panic("SECRET-TEXT of a panic") }
		}
	}
}
