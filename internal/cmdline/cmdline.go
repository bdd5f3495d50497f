// Package cmdline is the one parser, and the one writer, of the ampoule.* keys of the kernel command line.
//
// The command line is measured (SNP kernel-hashes, UKI, simulated PSP), so what it says is the image's own
// will. A repeated or unknown ampoule.* key is fatal: first-wins and last-wins have both been exploited elsewhere.
package cmdline
