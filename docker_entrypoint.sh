#!/bin/sh
# First start: the detector, the landmarks and a Stage I without references. FACE2SCENE_FETCH= (empty) fetches nothing.
set -e
case "$1" in app | restore) [ -z "${FACE2SCENE_FETCH-set}" ] || face2scene fetch ${FACE2SCENE_FETCH-yunet dlib real_esrgan_x4plus} ;; esac
exec face2scene "$@"
