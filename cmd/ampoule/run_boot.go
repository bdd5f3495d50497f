package main

import (
	"fmt"
	"path/filepath"

	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

// How ampoule run starts an image.
const (
	bootKernel = "kernel"
	bootDisk   = "disk" // as a cloud does
)

// bootFrom has cfg, which boots the kernel, boot what --boot says.
func bootFrom(what string, cfg *qemu.Config, dir string, info *mkimage.Info) error {
	switch what {
	case bootKernel:
		return nil
	case bootDisk:
	default:
		return usagef("--boot %q: want %s or %s", what, bootKernel, bootDisk)
	}
	if info.File(mkimage.RawFile) == (mkimage.File{}) {
		return fmt.Errorf("--boot %s: the image has no %s; build it with --formats %s", what, mkimage.RawFile, mkimage.Raw)
	}
	cfg.Kernel, cfg.Initrd, cfg.Cmdline = filepath.Join(dir, mkimage.UKIFile), "", ""
	cfg.Disk = filepath.Join(dir, mkimage.RawFile)
	return nil
}
