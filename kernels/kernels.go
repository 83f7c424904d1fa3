// Package kernels holds the recipes of the kernels banger can fetch, as data;
// internal/kernel reads them.
package kernels

import "embed"

// Recipes has one TOML file for each kernel.
//
//go:embed *.toml
var Recipes embed.FS
