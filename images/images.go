// Package images holds the recipes of the images that banger makes itself, as
// data. internal/image/debian knows how to read and make them; docs/image-catalog.md
// tells how to write one.
package images

import "embed"

// FS holds one directory for each recipe: recipe.toml, and below root/ the
// files that are put into the image.
//
//go:embed all:debian-bookworm
var FS embed.FS
