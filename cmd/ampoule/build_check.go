package main

import (
	"context"
	"fmt"

	"github.com/ampoule-vm/ampoule/mkimage"
)

// checkImage builds the image in dir again and prints where the two part. An image that is not what its sources make is
// exit code 3.
func checkImage(ctx context.Context, dir string, o mkimage.Options, std stdio, asJSON bool) error {
	c, err := mkimage.Check(ctx, o, dir)
	if err != nil {
		return err
	}
	if asJSON {
		if err := std.json(c); err != nil {
			return err
		}
	}
	if len(c.Differences) == 0 {
		std.say("build: %s: all %d files are what these sources make, bit by bit", dir, c.Files)
		return nil
	}
	if !asJSON {
		for _, d := range c.Differences {
			fmt.Fprintln(std.out, d)
		}
	}
	for _, d := range c.Inputs {
		std.say("build: made from something else: %s is%s there, and%s here", d.Within, d.Have, d.Want)
	}
	return &exitError{3, fmt.Errorf("%s is not what these sources make: %d differences in %d files", dir, len(c.Differences), c.Files)}
}
