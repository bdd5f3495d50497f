package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

const versionHelp = `
usage: ampoule version [--json]

Prints the version, the revision it was built from where that is known, and the version of Go.`

func versionVerb(_ context.Context, args []string, std stdio) error {
	fs := flags("version", versionHelp, std)
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	v := struct {
		Version  string `json:"version"`
		Revision string `json:"revision,omitempty"`
		Go       string `json:"go"`
	}{"(devel)", "", runtime.Version()}
	if b, ok := debug.ReadBuildInfo(); ok {
		v.Version = b.Main.Version
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				v.Revision = s.Value
			}
		}
	}
	if *asJSON {
		return std.json(v)
	}
	_, err := fmt.Fprintln(std.out, strings.Join(strings.Fields("ampoule "+v.Version+" "+v.Revision+" "+v.Go), " "))
	return err
}
