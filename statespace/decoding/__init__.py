"""Regressions of states on observations, and decoders made of them: see :func:`statespace.learn_decoder`."""

from statespace.decoding.gaussian_process import GaussianProcess
from statespace.decoding.kernel import NadarayaWatson
from statespace.decoding.learn import learn_decoder, train
from statespace.decoding.network import BoundedCovariance, NeuralNetwork
from statespace.decoding.regressor import Average, Moments, Predictor, Ridge
from statespace.decoding.scores import angular_error, normalised_rmse

__all__ = [
    "Average",
    "BoundedCovariance",
    "GaussianProcess",
    "Moments",
    "NadarayaWatson",
    "NeuralNetwork",
    "Predictor",
    "Ridge",
    "angular_error",
    "learn_decoder",
    "normalised_rmse",
    "train",
]
